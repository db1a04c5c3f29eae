"""The fusion of an experiment: its settings, the stages of the experts and of what is made of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, final

from harness.engine.checks import counts
from harness.engine.identity import key_of, payload_of
from harness.engine.messages import quoted
from harness.engine.seeding import derive
from harness.engine.stage import Stage
from harness.errors import Problem
from harness.mechanisms.routing import Routing
from harness.models.adapter import ALL_LINEAR, FEED_FORWARD, Lora
from harness.models.trained_weights import TrainedWeights, targets_of
from harness.protocols import ExampleSource, Fusion, Named, UsesAlignment
from harness.stages.align import Align
from harness.stages.expert import Expert
from harness.stages.fuse import Fuse
from harness.stages.inputs import AlignedStage, ModelStage
from harness.stages.route import Route
from harness.stages.routes import Routes

if TYPE_CHECKING:
    from harness.experiment.experiment import Experiment
    from harness.experiment.settings import FinetuneSettings

Name = Literal["helpful", "harmless", "honest"]
"""The experts. ``harmless`` is the alignment of the cell, with its defense."""
HARMLESS = "harmless"
EVERY: tuple[Name, ...] = ("helpful", "harmless", "honest")


@final
@dataclass(frozen=True, kw_only=True)
class Experts:
    """The rows of the experts other than ``harmless``, whose rows are the refusals of the corpus.

    Attributes:
        helpful: requests with helpful answers.
        honest: questions with true answers.
    """

    name: ClassVar[str] = "experts"
    version: ClassVar[int] = 1
    helpful: ExampleSource
    honest: ExampleSource


@final
@dataclass(frozen=True, kw_only=True)
class Merging:
    """A fusion without training.

    Attributes:
        method: fuses the experts' adapters.
        experts: which experts; their order does not matter.
    """

    name: ClassVar[str] = "merging"
    version: ClassVar[int] = 1
    method: Fusion
    experts: tuple[Name, ...] = EVERY

    def problems(self) -> list[Problem]:
        """Return what is wrong with the list of experts."""
        return _miscounted(self.experts)


@final
@dataclass(frozen=True, kw_only=True)
class Joint:
    """The control of every fusion: one adapter, trained on the rows of all experts together.

    It has as many parameters as the experts together: their number times the rank of ``align.adapter``, at its scale.

    Attributes:
        experts: whose rows; their order does not matter.
        epochs: passes over all rows; null are those of ``align.budget``, so that every row is seen as often as by its
            expert.
    """

    name: ClassVar[str] = "joint"
    version: ClassVar[int] = 1
    experts: tuple[Name, ...] = EVERY
    epochs: int | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors, and what is wrong with the list of experts."""
        return [*counts(self, "epochs"), *_miscounted(self.experts)]


@final
@dataclass(frozen=True, kw_only=True)
class Routed:
    """A mixture of the experts: they stay apart on a shared base, and a router is trained with them on the rows of all.

    Attributes:
        experts: which experts; their order does not matter.
        top_k: experts that a token is given to.
        method: the loss of the training.
        shuffled_labels: whether the gating loss sends rows to experts at random, its control.
        epochs: passes over all rows; null are those of ``align.budget``.
        adapter: a fresh adapter that is trained with the experts, on other layers than theirs.
    """

    name: ClassVar[str] = "routed"
    version: ClassVar[int] = 1
    base_weights: ClassVar[str] = (
        "puts routed experts in the place of its feed-forward layers, by the shapes of their matrices"
    )
    adapter: Lora
    method: Routing
    experts: tuple[Name, ...] = EVERY
    top_k: int = 2
    shuffled_labels: bool = False
    epochs: int | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors, and what is wrong with the list of experts."""
        found = [*counts(self, "top_k", "epochs"), *_miscounted(self.experts)]
        if not found and self.top_k > len(self.experts):
            found.append(Problem("top_k", f"{self.top_k} of {len(self.experts)} experts; expected at most all of them"))
        if taken := sorted(set(FEED_FORWARD).intersection(self.adapter.targets)):
            reason = f"has {quoted(taken)}, which the experts adapt; expected other layers, such as q_proj"
            found.append(Problem("adapter.targets", reason))
        return found


class Aligned(NamedTuple):
    """What is attacked, and how it came about.

    Attributes:
        model: the alignment that is attacked.
        stages: the stages that it is made of, by role, parents before children.
        measured: returns the measurement of a model with its experts; None unless they are routed.
    """

    model: AlignedStage
    stages: dict[str, Stage]
    measured: Callable[[ModelStage], Routes] | None = None


def aligned_adapter(experiment: "Experiment") -> Lora | TrainedWeights:
    """Return what a fine-tuning continues: the adapter of a mixture of experts, or else that of the alignment."""
    return experiment.fuse.adapter if isinstance(experiment.fuse, Routed) else experiment.align.adapter


def tuned_adapter(experiment: "Experiment", finetune: "FinetuneSettings") -> Lora | TrainedWeights:
    """Return what a fine-tuning trains: a fresh adapter or weights, or else what it continues."""
    fresh = finetune.fresh if finetune.adapter == "double" else None
    return (fresh or aligned_adapter(experiment)).ordered()


def aligned_of(experiment: "Experiment", aligned: Align) -> Aligned:
    """Return the stages of an experiment up to the alignment that is attacked.

    Args:
        experiment: the settings of the cell.
        aligned: the alignment on refusals, which is attacked itself if there is no fusion.
    """
    fusion = experiment.fuse
    if fusion is None:
        return Aligned(aligned, {"align": aligned})
    if isinstance(fusion, Joint):
        joint = Expert(
            base=aligned.base,
            rows=_sources(experiment, aligned, fusion.experts),
            budget=replace(aligned.budget, epochs=fusion.epochs or aligned.budget.epochs),
            adapter=_grown(_adapter_of(aligned), len(fusion.experts)),
            encoding=aligned.encoding,
            seed=derive(experiment.seed, "joint"),
        )
        return Aligned(joint, {"joint": joint})
    experts = _experts(experiment, aligned, fusion.experts)
    if isinstance(fusion, Merging):
        fused = Fuse(experts=tuple(sorted(experts.values(), key=lambda expert: expert.key)), method=fusion.method)
        return Aligned(fused, {**experts, "fuse": fused})
    return _routed(experiment, fusion, experts, aligned)


def _routed(experiment: "Experiment", fusion: Routed, experts: dict[str, Align | Expert], aligned: Align) -> Aligned:
    """Return the stages of a mixture of experts."""
    ordered = sorted(experts.values(), key=lambda expert: expert.key)
    rows = tuple(expert.rows[0] if isinstance(expert, Expert) else aligned.refusal for expert in ordered)
    routed = Route(
        experts=tuple(ordered),
        rows=rows,
        top_k=fusion.top_k,
        method=fusion.method,
        shuffled_labels=fusion.shuffled_labels,
        budget=replace(aligned.budget, epochs=fusion.epochs or aligned.budget.epochs),
        adapter=fusion.adapter.ordered(),
        encoding=aligned.encoding,
        seed=experiment.seed,
    )

    def measured(model: ModelStage) -> Routes:
        return Routes(
            model=model, experts=tuple(expert.key for expert in ordered), rows=rows, encoding=aligned.encoding
        )

    return Aligned(routed, {**experts, "route": routed}, measured)


def infeasible(experiment: "Experiment") -> list[Problem]:
    """Return why the alignments of an experiment cannot be fused."""
    fusion = experiment.fuse
    if fusion is None:
        return []
    if not isinstance(experiment.align.adapter, Lora):
        reason = "trains no adapter, and experts are fused as adapters; expected the settings of one, or `fuse=none`"
        return [Problem("align.adapter", reason)]
    found = []
    if experiment.experts is None and set(fusion.experts) != {HARMLESS}:
        reason = (
            "no rows are given for the experts other than `harmless`; expected an option of `experts`, which has rows "
            "by default only where an option has the name of the corpus. Choose one, as in `experts=tiny`"
        )
        found.append(Problem("experts", reason))
    if experiment.align.adapter.variant is not None:
        reason = (
            f"an adapter of the variant `{experiment.align.adapter.variant}` changes matrices by no product of "
            "factors, so it cannot be fused; expected null"
        )
        found.append(Problem("align.adapter.variant", reason))
    if isinstance(fusion, Routed):
        found += _unroutable(experiment)
    if isinstance(fusion, Joint) and experiment.defense.align is not None:
        reason = (
            f"`{experiment.defense.align.name}` protects the alignment on refusals, but `fuse=joint` has none: one "
            "adapter is trained on all rows; expected null"
        )
        found.append(Problem("defense.align", reason))
    return found


def _unroutable(experiment: "Experiment") -> list[Problem]:
    """Return what cannot be done with routed experts."""
    found = []
    targets = targets_of(experiment.align.adapter)
    finetune = experiment.finetune
    if finetune is not None and finetune.adapter == "double" and isinstance(finetune.fresh, TrainedWeights):
        reason = "trained weights are stored as a difference from the base, which has no routed experts (`fuse=moe`)"
        found.append(Problem("finetune.fresh", f"{reason}; expected an adapter"))
    if targets == ALL_LINEAR or set(targets) != set(FEED_FORWARD):
        reason = f"are not those of a feed-forward block, which experts are routed in; expected {quoted(FEED_FORWARD)}"
        found.append(Problem("align.adapter.targets", reason))
    if experiment.evaluation.decoding.engine == "vllm":
        reason = "vLLM cannot decode with routed experts (`fuse=moe`); expected null, the built-in decoding"
        found.append(Problem("evaluation.decoding.engine", reason))
    if experiment.tamper is not None:
        reason = (
            f"`{experiment.tamper.name}` changes the shared matrices only and would leave the routed experts as they "
            "are; expected null with `fuse=moe`"
        )
        found.append(Problem("tamper", reason))
    slots: dict[str, Named | None] = {"finetune": experiment.defense.finetune, "repair": experiment.defense.repair}
    for slot, method in slots.items():
        if method is not None and isinstance(method, UsesAlignment):
            reason = (
                f"`{method.name}` uses the change of the weights by alignment as products of factors, which routed "
                "experts (`fuse=moe`) are not; expected another method"
            )
            found.append(Problem(f"defense.{slot}", reason))
    return found


def _miscounted(experts: tuple[Name, ...]) -> list[Problem]:
    if not experts or len(set(experts)) < len(experts):
        stated = "lists an expert twice" if experts else "is empty"
        return [Problem("experts", f"{stated}; expected one or more of {quoted(EVERY)}, each once")]
    return []


def _experts(experiment: "Experiment", aligned: Align, names: tuple[Name, ...]) -> dict[str, Align | Expert]:
    """Return the alignments to be fused, by role."""
    found: dict[str, Align | Expert] = {}
    for name in EVERY:
        if name not in names:
            continue
        if name == HARMLESS:
            found["align"] = aligned
            continue
        found[name] = Expert(
            base=aligned.base,
            rows=(_source(experiment, name),),
            budget=aligned.budget,
            adapter=_adapter_of(aligned),
            encoding=aligned.encoding,
            # Adapters of one seed start with equal factors, so that their changes would resemble each other.
            seed=derive(experiment.seed, name),
        )
    return found


def _sources(experiment: "Experiment", aligned: Align, names: tuple[Name, ...]) -> tuple[ExampleSource, ...]:
    """Return the rows of the experts, in an order that does not depend on that of the names."""
    found = [aligned.refusal if name == HARMLESS else _source(experiment, name) for name in names]
    return tuple(sorted(found, key=lambda source: key_of(payload_of(source))))


def _source(experiment: "Experiment", name: Name) -> ExampleSource:
    assert experiment.experts is not None, "checked before"
    return experiment.experts.helpful if name == "helpful" else experiment.experts.honest


def _adapter_of(aligned: Align) -> Lora:
    assert isinstance(aligned.adapter, Lora), "checked before"
    return aligned.adapter


def _grown(adapter: Lora, times: int) -> Lora:
    """Return an adapter of a multiple of the rank, at the same scale."""
    grown = math.sqrt(times) if adapter.scaling == "rslora" else times
    return replace(adapter, rank=times * adapter.rank, alpha=grown * adapter.alpha)
