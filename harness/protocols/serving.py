"""Interface of methods that act at inference: between a model and the generation of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.errors import Problem
from harness.protocols.learner import DataRequirement, Named

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ServedModel(NamedTuple):
    """A model that answers, or on which a method is calibrated.

    Attributes:
        model: in eval mode, on its device, with its adapter. A method leaves it as it is.
        tokenizer: of the model.
        encoding: how it is asked.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding


class Calibrated(NamedTuple):
    """What a method learned from a model and some examples before it is asked anything.

    Attributes:
        tensors: by name; on the CPU.
        texts: by name.
        seed: of random choices while answers are generated.
    """

    tensors: Mapping[str, Tensor]
    texts: Mapping[str, Sequence[str]]
    seed: int = 0


class Verdict(NamedTuple):
    """Whether a prompt is rejected instead of answered, and the score by which this was decided."""

    rejected: bool
    score: float


class Calibration(Named, Protocol):
    """Frozen settings of the calibration of a method, which several settings of the method share."""

    on_aligned: ClassVar[bool]
    """Whether it reads the aligned model, before any user's fine-tuning; otherwise the model that is served."""

    @property
    def needs(self) -> Sequence[DataRequirement]:
        """The examples that it reads. Of these, only role, number and ``paired`` matter: there are no batches."""
        ...

    def preflight(self) -> list[Problem]:
        """Return what is missing for the method to run, such as a model; does not use the network."""
        ...

    def calibrate(
        self,
        served: ServedModel,
        examples: Mapping[Role, Sequence[Example]],
        refusals: Mapping[Role, Sequence[Example]],
        *,
        seed: int,
        facts: dict[str, Any],
    ) -> Calibrated:
        """Calibrate.

        Args:
            served: the model.
            examples: by role.
            refusals: those of the prompts of roles that are needed ``paired``.
            seed: of random choices.
            facts: receives entries for the manifest; JSON values only.

        Raises:
            DataError: an example cannot be used.
            ModelError: the model does not have what the method reads.
        """
        ...


class ServeMethod(Named, Protocol):
    """Frozen settings of a method at inference. What it does is declared by the optional protocols below."""

    @property
    def calibration(self) -> Calibration | None:
        """What has to be known before the first prompt; None if nothing."""
        ...


@runtime_checkable
class RejectsPrompts(Protocol):
    """Optional: a method that rejects prompts before anything is generated; it may ask the model itself."""

    def verdicts(
        self, served: ServedModel, calibrated: Calibrated, examples: Sequence[Example], *, facts: dict[str, Any]
    ) -> list[Verdict]:
        """Return one verdict per prompt, in order.

        Args:
            served: the model.
            calibrated: what the calibration found.
            examples: the prompts; their answers are references that must not be read.
            facts: receives entries for the manifest, such as the cost; JSON values only.
        """
        ...


@runtime_checkable
class SteersActivations(Protocol):
    """Optional: a method that changes activations while the model generates."""

    def steering(self, served: ServedModel, calibrated: Calibrated) -> AbstractContextManager[None]:
        """Return the context within which the model is steered; nothing is left of it on exit.

        Changes must not depend on the position of a token or on other rows: prompts are decoded in batches, with and
        without padding. They may be recorded as CUDA graphs, so they must neither move data nor read values.

        Raises:
            ModelError: the model does not have what is steered.
        """
        ...


@runtime_checkable
class RewritesPrompts(Protocol):
    """Optional: a method that changes prompts before the model reads them."""

    def rewritten(self, example: Example) -> Example:
        """Return a prompt as the model is asked it, before the template is applied."""
        ...
