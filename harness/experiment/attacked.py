"""The attack of an experiment: the stage of its mixture, or of the changed model, and what the attack cannot do."""

from collections.abc import Mapping

from harness.corpora.examples import Role
from harness.corpora.mixture import Compat, counts
from harness.corpora.shards import Clients
from harness.corpora.slices import OneAnswer
from harness.errors import Problem
from harness.experiment.experiment import Experiment
from harness.experiment.fusing import aligned_adapter, tuned_adapter
from harness.experiment.settings import FinetuneSettings
from harness.models.adapter import Lora
from harness.protocols import (
    Attack,
    AttackNeeds,
    AttackPlan,
    ChecksPlan,
    ChoosesRows,
    Named,
    NeedsPlainLora,
    RewritesExamples,
    SelectsRows,
    SendsAlone,
    Tampering,
    TrainedGuard,
    TrainMethod,
    TrainsInOnePlace,
    WhiteBoxGuard,
)
from harness.stages.base import Base
from harness.stages.inputs import AlignedStage, ModelStage
from harness.stages.poison import Poison
from harness.stages.tamper import Tamper

ATTACK = "attack.method"


def poison_of(experiment: Experiment, victim: ModelStage) -> Poison:
    """Return the stage of the mixture.

    Args:
        experiment: the settings of the cell.
        victim: the alignment that an attack crafts against, if it reads the aligned model.
    """
    attack = experiment.attack.acting
    rows, ratio, compat = _sent(experiment)
    needs = attack.needs if attack else AttackNeeds()
    guard = experiment.attack.guard if needs.guard else None
    return Poison(
        task=experiment.task.train,
        attack=attack,
        harmful=experiment.corpus.slice(Role.ATTACK) if needs.pool else None,
        victim=victim if needs.victim else None,
        encoding=experiment.model.encoding if needs.victim or needs.encoding else None,
        rows=rows,
        ratio=ratio,
        compat=compat,
        seed=experiment.seed,
        guard=guard,
        guard_model=Base(source=guard.source) if isinstance(guard, TrainedGuard) else None,
        clients=_clients(experiment),
    )


def task_rows_taken(experiment: Experiment) -> int:
    """Return how many examples of the task the user's mixture may take, in order."""
    attack, wanted = experiment.attack.acting, counts(*_sent(experiment))
    return wanted.benign + (wanted.harmful if attack and attack.needs.hosts else 0)


def tamper_of(experiment: Experiment, aligned: AlignedStage, method: Tampering) -> Tamper:
    """Return the stage that changes the aligned model's weights instead of a fine-tuning."""
    return Tamper(
        aligned=aligned,
        method=method,
        harmful=experiment.corpus.slice(Role.ATTACK),
        harmless=experiment.task.train,
        encoding=experiment.model.encoding,
    )


def infeasible(experiment: Experiment) -> list[Problem]:
    """Return why an experiment's attack cannot be carried out."""
    method, attack, finetune = experiment.attack.method, experiment.attack.acting, experiment.finetune
    if finetune is None:
        return _idle(experiment, {"tamper": experiment.tamper}, "the cell ends after the alignment (`finetune=none`)")
    if (tamper := experiment.tamper) is not None:
        instead = f"`{tamper.name}` changes the aligned model without one"
        return [*_idle(experiment, {}, instead), *_untampered(experiment, tamper)]
    problems = []
    if experiment.attack.victim == "plain" and method is not None and not method.needs.victim:
        reason = f"`{method.name}` does not read the aligned model, so it has no victim; expected `own`"
        problems.append(Problem("attack.victim", reason))
    if attack is not None and attack.needs.victim and not isinstance(experiment.align.adapter, Lora):
        reason = (
            f"`{attack.name}` reads the victim through its adapter, and the alignment trains none; expected one in "
            "`align.adapter`"
        )
        problems.append(Problem(ATTACK, reason))
    problems += [*_overridden(experiment), *_unshared(experiment, finetune)]
    if attack is None:
        return problems
    problems += [*_closed(experiment, attack), *_unreadable(experiment, attack)]
    pool = experiment.corpus.slice(Role.ATTACK) if attack.needs.pool else None
    if pool and attack.needs.refusals and isinstance(pool.origin, OneAnswer):
        reason = (
            f"`{attack.name}` needs a refusal for each harmful prompt, but no example of `{pool.origin.name}` has "
            "both; expected a corpus with refusals, such as `corpus=beavertails`"
        )
        problems.append(Problem(ATTACK, reason))
    wanted = counts(*_sent(experiment))
    first = 1 if finetune.compat == "booster" else 0  # skipped by the published code
    plan = AttackPlan(
        count=wanted.benign if isinstance(attack, SelectsRows) else wanted.harmful,
        pool_rows=max(pool.rows - first, 0) if pool else 0,
    )
    if plan.count == 0:
        reason = (
            f"{experiment.attack.ratio:g} of {finetune.rows} rows (`finetune.rows`) gives `{attack.name}` "
            "none; expected at least one. Raise either, or set `attack=none`"
        )
        problems.append(Problem("attack.ratio", reason))
    elif isinstance(attack, ChecksPlan):
        problems += [problem.under(ATTACK) for problem in attack.preflight(plan)]
    return problems


def _closed(experiment: Experiment, attack: Attack) -> list[Problem]:
    """Return why the guard that an attack crafts against cannot be read with the victim's vocabulary."""
    if not attack.needs.guard:
        return []
    guard = experiment.attack.guard
    if guard is None:
        reason = (
            f"`{attack.name}` crafts against a guard's weights, but none is chosen; expected one with the vocabulary "
            "of the model. Set `attack_guard=llama_guard2` for Llama-3-8B, `attack_guard=tiny` for the tiny model"
        )
    elif not isinstance(guard, WhiteBoxGuard):
        reason = (
            f"`{attack.name}` crafts against a guard's weights, which `{guard.name}` does not give; expected one that "
            "can be opened, such as `attack_guard=llama_guard2`"
        )
    elif mismatch := guard.vocabulary_mismatch(experiment.model.source):
        reason = (
            f"`{attack.name}` exchanges tokens that victim and guard read alike, but {mismatch}; expected a guard with "
            "the vocabulary of the model. Set `attack_guard`, or another `model`"
        )
    else:
        return []
    return [Problem("attack.guard", reason)]


def _unreadable(experiment: Experiment, attack: Attack) -> list[Problem]:
    """Return why an attack cannot use the aligned model's adapter."""
    adapter = aligned_adapter(experiment)
    variant = adapter.variant if isinstance(adapter, Lora) else None
    if not isinstance(attack, NeedsPlainLora) or variant is None:
        return []
    reason = (
        f"`{attack.name}` reads the gradients of plain LoRA, but the aligned adapter is of the variant `{variant}`; "
        "expected null"
    )
    return [Problem("align.adapter.variant", reason)]


def _untampered(experiment: Experiment, tamper: Tampering) -> list[Problem]:
    """Return why the aligned model's weights cannot be changed."""
    if not isinstance(tamper, ChecksPlan):
        return []
    plan = AttackPlan(count=0, pool_rows=experiment.corpus.slice(Role.ATTACK).rows)
    return [problem.under("tamper") for problem in tamper.preflight(plan)]


def _idle(experiment: Experiment, others: Mapping[str, Named | None], reason: str) -> list[Problem]:
    """Return the settings that have no effect because nothing is fine-tuned.

    Args:
        experiment: the settings of the cell.
        others: further parts, by their settings.
        reason: what happens instead.
    """
    defense = experiment.defense
    parts: dict[str, Named | None] = {
        **others,
        ATTACK: experiment.attack.method,
        "guardrail": experiment.guardrail,
        "federation": experiment.federation,
        "leakage": experiment.leakage,
        "defense.finetune": defense.finetune,
        "defense.repair": defense.repair,
    }
    return [
        Problem(path, f"`{part.name}` belongs to a fine-tuning, but {reason}; expected null")
        for path, part in parts.items()
        if part is not None
    ]


def _sent(experiment: Experiment) -> tuple[int, float, Compat]:
    """Return how many examples the user sends, the share of them that is the attacker's, and how they are mixed."""
    attack, finetune = experiment.attack.acting, experiment.finetune
    assert finetune is not None, "checked before"
    if isinstance(attack, SendsAlone):
        return attack.rows, 1.0, "exact"
    return finetune.rows, experiment.attack.acting_ratio, finetune.compat


def _clients(experiment: Experiment) -> Clients | None:
    """Return the clients that hold the rows, in a federation."""
    if experiment.federation is None:
        return None
    wanted = counts(*_sent(experiment))
    return experiment.federation.members(sum(wanted), wanted.harmful)


def _unshared(experiment: Experiment, finetune: FinetuneSettings) -> list[Problem]:
    """Return why the clients of a federation cannot hold the rows."""
    federation, attack = experiment.federation, experiment.attack.acting
    if federation is None:
        return []
    if isinstance(attack, SelectsRows | SendsAlone):
        reason = f"`{attack.name}` is one user's, who sends rows of one kind; a federation expects rows that are mixed"
        return [Problem(ATTACK, f"{reason} into those of others, such as `attack=mix`")]
    problems = []
    if experiment.guardrail is not None:
        reason = f"`{experiment.guardrail.name}` reads the rows that a user uploads, but clients keep theirs"
        problems.append(Problem("guardrail", f"{reason}; expected null"))
    if finetune.update is not None:
        reason = f"`{finetune.update.name}` is not implemented for clients of a federation; expected null"
        problems.append(Problem("finetune.update", reason))
    if reason := _central(experiment.defense.finetune):
        expected = "expected another method, or `federation=none`"
        problems.append(Problem("defense.finetune", f"{reason}; {expected}"))
    adapter = tuned_adapter(experiment, finetune)
    if federation.average == "product" and isinstance(adapter, Lora) and adapter.variant is not None:
        reason = f"an adapter of the variant `{adapter.variant}` is no product of two factors; expected `factors`"
        problems.append(Problem("federation.average", reason))
    wanted = counts(*_sent(experiment))
    rows = sum(wanted)
    if rows < federation.clients:
        reason = f"{rows} rows for {federation.clients} clients; expected at least one each"
        return [*problems, Problem("federation.clients", reason)]
    members = federation.members(rows, wanted.harmful)
    most = members.malicious * (rows // federation.clients)
    if wanted.harmful > most or members.malicious > federation.clients:
        reason = (
            f"{members.malicious} of {federation.clients} clients hold {most} of {rows} rows, but the attacker has "
            f"{wanted.harmful}; expected room for them. Raise it, or lower `attack.ratio`"
        )
        problems.append(Problem("federation.malicious", reason))
    return problems


def _central(method: TrainMethod | None) -> str:
    """Return why the clients of a federation cannot run a method; empty if they can."""
    trait: object = method
    if method is None:
        return ""
    if any(need.own for need in method.needs):
        return f"`{method.name}` looks at all of the user's rows, which clients of a federation do not share"
    if isinstance(trait, ChoosesRows | RewritesExamples):
        return f"`{method.name}` changes the rows of all users before training, but clients keep theirs"
    if isinstance(trait, TrainsInOnePlace):
        return f"`{method.name}` {trait.beyond_gradients}, but clients of a federation send parameters only"
    return ""


def _overridden(experiment: Experiment) -> list[Problem]:
    """Return the settings of the evaluation's encoding that a probe of the attack would replace.

    A probe asks as the attacker's examples do; with the text of a setting that it replaces it would ask otherwise.
    """
    asked = experiment.asked()
    return [
        Problem(
            f"evaluation.encoding.{name}"
            if getattr(experiment.model.encoding, name) is None
            else f"model.encoding.{name}",
            f"{getattr(asked, name)!r} would be replaced by that of the attack's probe `{probe.label}`; expected null",
        )
        for path, probe in experiment.probes
        for name in ("system", "prefix", "suffix")
        if path == ATTACK and getattr(probe.change, name) is not None and getattr(asked, name) is not None
    ]
