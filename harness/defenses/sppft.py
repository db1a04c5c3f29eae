"""SPPFT: fine-tuning with the safety layers, a range in the lower middle of the decoder, frozen.

Shen Li, Liuyi Yao, Lan Zhang, Yaliang Li: "Safety Layers in Aligned Large Language Models: The Key to LLM Security",
ICLR 2025 (arXiv 2408.17003), "Safely Partial-Parameter Fine-Tuning".

Every trainable parameter in the layers ``first`` to ``last`` keeps its value from the aligned model: the optimizer
neither updates nor decays it. The others are trained plainly. One forward pass, and a backward pass that computes no
gradient of frozen parameters.

Deviations from the authors' code: it trains the attention and feed-forward matrices themselves; here what is frozen is
what would have been trained in these layers, the adapter's factors. Their script takes the two layers around the range,
4 and 15; here ``first`` and ``last`` are part of the range, counted from 0. Their search for the range (cosines of the
hidden states of normal and malicious prompts, then the number of harmless prompts that are refused) is not implemented:
the range is a setting.

Fidelity: hand-computed only. The range 5 to 14 of 32 layers is the default of the authors' script; the numbers in the
paper's own tables were not available, so none is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import not_negative
from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics

DEPTH = 32
"""Number of layers that the published range belongs to."""
FIRST, LAST = 5, 14
"""The published range, in a model of ``DEPTH`` layers."""


@final
@dataclass(frozen=True, kw_only=True)
class SPPFT:
    """Settings of SPPFT.

    Attributes:
        first: the lowest frozen layer, counted from 0; None is the published share of the depth, 5/32, rounded down.
        last: the highest frozen layer; None is 14/32 of the depth, rounded down.
    """

    name: ClassVar[str] = "sppft"
    version: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    first: int | None = None
    last: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = not_negative(self, "first", "last")
        if not found and self.first is not None and self.last is not None and self.last < self.first:
            found.append(Problem("last", f"{self.last} is below `first`, {self.first}; expected {self.first} or more"))
        return found

    def layers(self, depth: int) -> range:
        """Return the indices of the frozen layers in a decoder with ``depth`` layers.

        Raises:
            ModelError: the decoder has no such layers.
        """
        first = depth * FIRST // DEPTH if self.first is None else self.first
        last = depth * LAST // DEPTH if self.last is None else self.last
        if not first <= last < depth:
            raise ModelError(
                f"`sppft` freezes layers {first} to {last}, but the model has the layers 0 to {depth - 1}; set `first` "
                "and `last` to a range of them"
            )
        return range(first, last + 1)

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SPPFTStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: the range is not one of the model's layers, or it holds none or all of what is trained.
        """
        return SPPFTStep(self, learner)


@final
class SPPFTStep:
    """One run of SPPFT. It has no state between steps."""

    def __init__(self, settings: SPPFT, learner: Learner) -> None:
        """Find the frozen parameters.

        Raises:
            ModelError: the range is not one of the model's layers, or it holds none or all of what is trained.
        """
        from harness.models.decoder import layers

        stack = layers(learner.module)
        chosen = settings.layers(len(stack))
        inside = {id(parameter) for layer in chosen for parameter in stack[layer].parameters()}
        self._learner = learner
        self._frozen = [id(trainable) in inside for trainable in learner.trainables]
        if all(self._frozen) or not any(self._frozen):
            raise ModelError(
                f"`sppft` freezes layers {chosen.start} to {chosen.stop - 1} of {len(stack)}, which hold "
                f"{sum(self._frozen)} of {len(self._frozen)} trainable parameters; expected some of them, not all. Set "
                "`first` and `last`"
            )

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the other layers; report the loss and the number of frozen parameters."""
        from harness.mechanisms.frozen_parameters import partial_gradient

        loss, gradient = partial_gradient(self._learner, batch, self._frozen)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "frozen": float(sum(self._frozen))}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
