"""Interfaces of defenses: methods in the training slots and in the repair slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from harness.corpora.probe import Probe
from harness.errors import Problem
from harness.protocols.learner import BatchProvider, DataRequirement, Learner, Named, TrainStep

if TYPE_CHECKING:
    from harness.protocols.learner import BatchProvider, Gradient, Learner


@runtime_checkable
class ProducesOutputs(Protocol):
    """A training step with outputs for the repair: stored next to the adapter, passed to ``RepairMethod.repair``."""

    def outputs(self) -> Mapping[str, Gradient]:
        """Return the outputs after the last step: by name, one tensor per trainable parameter."""
        ...


@runtime_checkable
class EditsResult(Protocol):
    """A training step that changes the trained weights once more, after the last optimizer step."""

    def finish(self) -> Mapping[str, object]:
        """Change the trainable parameters in place, the same on every process; return facts for the manifest."""
        ...


@runtime_checkable
class ChoosesStart(Protocol):
    """A training step that chooses where the trainable parameters start."""

    def initial(self) -> Gradient:
        """Return the values at which training starts, the same on every process; called once, before the first step."""
        ...


@runtime_checkable
class ActsAfterStep(Protocol):
    """A training step that changes the trainable parameters right after each optimizer step."""

    def after_step(self) -> None:
        """Change the trainable parameters in place, the same on every process."""
        ...


@runtime_checkable
class ScalesLearningRates(Protocol):
    """A training step in which parameters have different learning rates.

    A gradient cannot do that: AdamW divides its scale away. Weight decay, which is proportional to the learning rate,
    is scaled too.
    """

    def learning_rate_factors(self) -> Sequence[float]:
        """Return by how much the budget's learning rate is multiplied for each trainable parameter, above 0."""
        ...


@runtime_checkable
class DisguisesGradients(Protocol):
    """Optional: settings of a method of the fine-tuning that disguises the gradient of a row before it is sent."""

    def disguised(self, gradient: Gradient, seed: int) -> Gradient:
        """Return what is sent in place of the gradient of one row, in the first step.

        Args:
            gradient: of the row.
            seed: of the noise.
        """
        ...


class TrainMethod(Named, Protocol):
    """Frozen settings of a defense in a training slot (``align``, ``finetune``); see also ``ComparesPasses``."""

    @property
    def needs(self) -> Sequence[DataRequirement]:
        """The data that the method uses in addition to the stage's own examples."""
        ...

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> TrainStep:
        """Start a run of ``total_steps`` optimizer steps."""
        ...


class RepairMethod(Named, Protocol):
    """Frozen settings of a defense in the ``repair`` slot: changes the weights after fine-tuning."""

    @property
    def needs(self) -> Sequence[DataRequirement]:
        """The method's calibration data."""
        ...

    def repair(
        self, learner: Learner, *, start: Gradient, method_outputs: Mapping[str, Gradient], batches: BatchProvider
    ) -> Mapping[str, object]:
        """Change the trainable parameters of the fine-tuned model in place; return facts for the manifest, as JSON.

        The adapter may end with another rank than it had (``harness.models.adapter.resize``), up to that of a matrix.

        ``start`` are the trainable parameters before fine-tuning: the aligned adapter under the protocol ``single``,
        the fresh adapter as initialized under ``double``, where the aligned one is merged into the base. They are
        factors: a mean of factors is no mean of weights. ``method_outputs`` are the outputs of the fine-tuning method,
        by name; for a method that declares ``NeedsSafeAdapter`` or ``NeedsUnsafeAdapter`` also the parameters of that
        adapter, as ``safe`` or ``unsafe``.
        """
        ...


@runtime_checkable
class HasConflicts(Named, Protocol):
    """Optional: a method that is incompatible with some methods in other slots."""

    def conflicts(self, slots: Mapping[str, Named | None]) -> Sequence[Problem | str]:
        """Return why the method cannot be combined with the methods in these slots; None is an empty slot.

        A problem's path is relative to the method; a plain string is a problem of the method as a whole.
        """
        ...


@runtime_checkable
class HasProbes(Protocol):
    """Optional: an attack or a method that is evaluated under further questions, in addition to the usual one."""

    @property
    def probes(self) -> Sequence[Probe]:
        """The questions, each of which becomes a row of the tables."""
        ...


@runtime_checkable
class TrainsPlainly(Protocol):
    """Optional: settings of a method that changes how a model is asked and nothing else; see ``HasProbes``.

    Its stage is built without a method, so that the model is that of plain training, by key.
    """

    trains_plainly: ClassVar[bool]


@runtime_checkable
class ComparesPasses(Protocol):
    """Optional: settings of a method that requires dropout to be off, see ``refuse_dropout``."""

    compares_passes: ClassVar[bool]


@runtime_checkable
class NeedsPlainLora(Protocol):
    """Optional: settings of a method that takes the adapter to be the factors ``A`` and ``B`` and nothing else.

    It cannot be combined with DoRA, whose magnitudes are trainable too and which passes more than the layer's input
    through the factors.
    """

    needs_plain_lora: ClassVar[bool]


@runtime_checkable
class ReadsBaseWeights(Named, Protocol):
    """Optional: settings of a method or a fusion that reads matrices of the base; refused on a 4-bit base.

    ``base_weights`` states what it does with them, as the rest of a sentence: "takes the norms of their columns".
    """

    base_weights: ClassVar[str]


@runtime_checkable
class TrainsWeights(Protocol):
    """Optional: settings of a method that also works where a model's own weights are trained instead of an adapter.

    ``weight_copies`` says how much more memory the method takes than plain training, as a number of float32 copies of
    everything that is trained; what is held of one weight at a time is not counted. Plain training holds the weights,
    two copies of the gradient and two moments. A repair is compared with the weights alone.
    """

    weight_copies: ClassVar[int]


@runtime_checkable
class WorksOnShards(Protocol):
    """Optional: settings of a method that also works where those weights are sharded over the processes (FSDP).

    Then gradients and copies of weights are sharded tensors (``DTensor``). The method combines them elementwise with
    each other, takes numbers from them with ``Learner.norm`` and ``inner_product`` only, and its losses depend on the
    weights through outputs of the model, of its layers or of its final norm, not of what is inside of a layer alone.
    """

    works_on_shards: ClassVar[bool]


@runtime_checkable
class NeedsFreshAdapter(Named, Protocol):
    """Optional: settings of a fine-tuning method that trains an adapter of its own, not the aligned one further."""

    needs_fresh_adapter: ClassVar[bool]


@runtime_checkable
class TrainsInOnePlace(Named, Protocol):
    """Optional: settings of a fine-tuning method that clients of a federation cannot run, as they only send parameters.

    Its step is more than gradients, as one that declares ``ProducesOutputs``, ``ScalesLearningRates`` or another
    protocol of steps is. ``beyond_gradients`` says what it does, as in "it weighs rows".
    """

    beyond_gradients: ClassVar[str]


@runtime_checkable
class UsesAlignment(Protocol):
    """Optional: settings of a method that reads ``Learner.alignment`` after the alignment stage.

    The aligned adapter has to be plain LoRA, and fine-tuning has to adapt every layer that it adapts.
    """

    uses_alignment: ClassVar[bool]


@runtime_checkable
class NeedsUnsafeAdapter(Protocol):
    """Optional: settings of a repair that is given an unsafe adapter: one trained on the defender's harmful examples.

    It is trained from the aligned model as the fine-tuned one is: same adapter, protocol and budget, no defense.
    """

    @property
    def unsafe_rows(self) -> int | None:
        """The number of harmful examples it is trained on; None means all of the corpus."""
        ...


@runtime_checkable
class NeedsSafeAdapter(Protocol):
    """Optional: settings of a repair that is given a safe adapter: one trained on refusals instead of the user's data.

    It is trained from the aligned model as the fine-tuned one is: same adapter, protocol and budget, no defense.
    """

    @property
    def safe_rows(self) -> int | None:
        """The number of refusals it is trained on; None means all of the corpus."""
        ...
