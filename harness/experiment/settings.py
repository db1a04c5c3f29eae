"""The settings of a cell, by config group."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.corpora.encode import Encoding
from harness.corpora.probe import EncodingChange
from harness.corpora.shards import Clients, fewest_malicious
from harness.engine.checks import counts, not_negative, shares
from harness.errors import Problem
from harness.generation.decoding import Decoding
from harness.models.adapter import Lora
from harness.models.trained_weights import TrainedWeights
from harness.protocols import (
    Aggregator,
    Attack,
    Estimator,
    ExampleSource,
    HasConflicts,
    Judge,
    ModelSource,
    Named,
    RefusalJudge,
    RepairMethod,
    SelectsRows,
    SendsAlone,
    TrainedGuard,
    TrainMethod,
)
from harness.training.budget import Budget
from harness.training.rounds import Rounds


@final
@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model, and how text is encoded for it."""

    name: ClassVar[str] = "model"
    version: ClassVar[int] = 1
    source: ModelSource
    encoding: Encoding


@final
@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Alignment: number of refusal examples, training budget, and the adapter or the weights that are trained."""

    name: ClassVar[str] = "align"
    version: ClassVar[int] = 1
    rows: int
    budget: Budget
    adapter: Lora | TrainedWeights

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows")


@final
@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Fine-tuning: number of user examples, training budget, and whether the aligned adapter is continued or merged.

    Attributes:
        rows: number of user examples, harmful ones included.
        budget: the training budget.
        adapter: ``single`` continues the training of the aligned adapter or weights; ``double`` merges the adapter,
            rounded to the base's dtype, and trains what ``fresh`` says.
        compat: ``exact`` uses exact counts, ``booster`` the published code's strict slice (99 of 100 examples).
        fresh: configuration of the new adapter, or the weights that are trained; null is that of the alignment.
            Ignored with ``single``.
        update: estimates gradients from forward passes; null computes them.
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    rows: int
    budget: Budget
    adapter: Literal["single", "double"]
    compat: Literal["exact", "booster"] = "exact"
    fresh: Lora | TrainedWeights | None = None
    update: Estimator | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows")


@final
@dataclass(frozen=True, kw_only=True)
class Federation:
    """The user's fine-tuning by a federation: clients hold the rows of the mixture, and a server combines their work.

    Attributes:
        clients: number of clients, with equal numbers of rows.
        malicious: number of clients that hold the attacker's rows; the poison ratio stays the share of all rows, so the
            share in a malicious client is ``ratio * clients / malicious``. Null is the smallest number that can hold
            them. Without an attack there is none.
        per_round: see ``Rounds``, as all that follow.
        rounds: number of rounds.
        local_steps: optimizer steps of a client in a round.
        aggregate: how the server combines what the clients trained.
        average: ``factors`` or ``product``.
        optimizer: ``fresh`` or ``kept``.
        jobs: whether rounds are stages of their own, which a cluster runs as jobs: ``round``, one for all clients of a
            round; ``client``, one for each. Null is one stage for all rounds. The result is
            the same, up to the rounding of the device of the server.
    """

    name: ClassVar[str] = "federation"
    version: ClassVar[int] = 1
    clients: int
    malicious: int | None = None
    per_round: int
    rounds: int
    local_steps: int
    aggregate: Aggregator
    average: Literal["factors", "product"] = "factors"
    optimizer: Literal["fresh", "kept"] = "fresh"
    jobs: Literal["round", "client"] | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        found = [*counts(self, "clients", "per_round", "rounds", "local_steps"), *not_negative(self, "malicious")]
        for name in ("malicious", "per_round"):
            value = getattr(self, name)
            if value is not None and value > self.clients:
                found.append(Problem(name, f"{value} of {self.clients} clients; expected at most as many"))
        if self.per_round < self.aggregate.fewest:
            reason = f"{self.per_round} clients are too few for `{self.aggregate.name}`"
            found.append(Problem("per_round", f"{reason}; expected at least {self.aggregate.fewest}"))
        if self.average == "product" and not self.aggregate.weighs_clients:
            reason = (
                f"`{self.aggregate.name}` does not average whole clients, so there are no products to average; "
                "expected `factors`"
            )
            found.append(Problem("average", reason))
        return found

    def members(self, rows: int, harmful: int) -> Clients:
        """Return the clients that hold a mixture.

        Args:
            rows: the number of rows.
            harmful: how many of them are the attacker's.
        """
        fewest = fewest_malicious(rows, harmful, self.clients)
        malicious = self.malicious if self.malicious is not None else fewest
        return Clients(clients=self.clients, malicious=malicious if harmful else 0)

    @property
    def training(self) -> Rounds:
        """The rounds."""
        return Rounds(
            per_round=self.per_round,
            rounds=self.rounds,
            local_steps=self.local_steps,
            aggregate=self.aggregate,
            average=self.average,
            optimizer=self.optimizer,
        )


@final
@dataclass(frozen=True, kw_only=True)
class Defense:
    """The three slots of a defense; an empty slot (null) means plain training, or no repair."""

    name: ClassVar[str] = "defense"
    version: ClassVar[int] = 1
    align: TrainMethod | None = None
    finetune: TrainMethod | None = None
    repair: RepairMethod | None = None

    def conflicts(self) -> list[Problem]:
        """Return why methods are incompatible with each other."""
        slots: dict[str, Named | None] = {"align": self.align, "finetune": self.finetune, "repair": self.repair}
        found: list[Problem] = []
        for slot, method in slots.items():
            if isinstance(method, HasConflicts):
                found += [Problem.of(stated).under(f"defense.{slot}") for stated in method.conflicts(slots)]
        return found


@final
@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """The attack: how it makes examples, and the fraction of the user's examples that is the attacker's.

    Attributes:
        ratio: the poison ratio. An attack that selects the user's examples acts whatever the ratio, one that sends its
            examples alone at any ratio but 0.
        method: the attack; null is benign fine-tuning.
        victim: the alignment that an attack crafts against, if it reads the aligned model: ``own`` is the one that is
            attacked, ``plain`` the one without a defense (a transfer attack, crafted once for all defenses).
        guard: the guard that an attack crafts against, if it reads a guard's weights; that of the guardrail may be
            another one, or none.
    """

    name: ClassVar[str] = "attack"
    version: ClassVar[int] = 1
    ratio: float
    method: Attack | None = None
    victim: Literal["own", "plain"] = "own"
    guard: Judge | TrainedGuard | None = None

    @property
    def acting(self) -> Attack | None:
        """The attack; None at a ratio of 0, unless it selects."""
        return self.method if self.ratio > 0 or isinstance(self.method, SelectsRows) else None

    @property
    def acting_ratio(self) -> float:
        """Fraction of the attacker's examples in the training data; 0 without an attack."""
        if self.acting is None or isinstance(self.acting, SelectsRows):
            return 0.0
        return 1.0 if isinstance(self.acting, SendsAlone) else self.ratio

    def problems(self) -> list[Problem]:
        """Range errors."""
        return shares(self, "ratio")


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation: number of prompts for the harmful score, and how generations are decoded.

    Attributes:
        rows: number of evaluation prompts.
        new_tokens: maximum length of a generation for an evaluation prompt, in tokens.
        decoding: decoding of generations, both for evaluation prompts and for the task.
        encoding: how the encoding of these prompts differs from the model's, which trains; null does not differ.
    """

    name: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 1
    rows: int
    new_tokens: int
    decoding: Decoding
    encoding: EncodingChange | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        return counts(self, "rows", "new_tokens")


@final
@dataclass(frozen=True, kw_only=True)
class OverRefusal:
    """Over-refusal: the share of harmless prompts that the model refuses to answer.

    Answers are decoded as those to the evaluation prompts are.

    Attributes:
        prompts: harmless prompts that look harmful.
        judge: decides whether an answer is a refusal.
    """

    name: ClassVar[str] = "over_refusal"
    version: ClassVar[int] = 1
    prompts: ExampleSource
    judge: RefusalJudge
