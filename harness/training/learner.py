"""The model under training, as a method sees it: gradients, norms and reversible moves of its trainables.

Gradients are taken with ``torch.autograd.grad``, so nothing is written to ``.grad`` (and no hook of a wrapper that
reduces gradients fires) until a method hands in its combined gradient. A loss is the sum over a piece's tokens divided
by the tokens of all pieces and processes, and the gradients are summed: every process then holds the gradient of the
global batch, so norms and perturbations agree without further exchange, however the batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import cross_entropy

from harness.corpora.encode import IGNORED
from harness.errors import ModelError
from harness.protocols import Piece, Prediction
from harness.training.budget import Precision
from harness.training.distributed import all_reduce_sum
from harness.training.pieces import cut


class CausalLearner:
    """A causal language model; satisfies ``protocols.Learner``.

    Attributes:
        steps_taken: how many steps the optimizer has taken; set by the trainer.

    Args:
        model: an unwrapped causal language model (an adapter model counts as one), on its device.
        precision: the number format of the forward pass.
        rows_at_once: rows that go through the model at once, at most; None is all of a batch.

    Raises:
        ModelError: nothing is trainable, a trainable is not float32, or the model has no output embeddings.
    """

    def __init__(
        self, model: Module, *, precision: Precision = Precision.FLOAT32, rows_at_once: int | None = None
    ) -> None:
        """Find the trainables and the language-model head."""
        trainables = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        _check(trainables)
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, Module):
            raise ModelError(f"{type(model).__name__} has no output embeddings; expected a causal language model")
        self.steps_taken = 0
        self._model: Any = model
        self._head = head
        self._trainables = tuple(trainables.values())
        self._rows = rows_at_once
        self._autocast = precision is Precision.BFLOAT16

    @property
    def module(self) -> Module:
        """The model itself, for hooks."""
        return self._model  # type: ignore[no-any-return]

    @property
    def trainables(self) -> Sequence[Parameter]:
        """The parameters that the optimizer moves; float32, in the order of ``named_parameters``."""
        return self._trainables

    def gradient(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss over the supervised positions of the global batch, and its gradient.

        A trainable that the loss does not depend on has a gradient of zeros.

        Args:
            batch: ``input_ids``, ``attention_mask`` and ``labels``, each ``[batch, time]``, right padded.
        """
        (loss,), gradient = self.accumulate(self.pieces(batch), lambda piece: (self.loss(piece),))
        return loss, gradient

    def pieces(self, batch: Mapping[str, Tensor]) -> list[Piece]:
        """Cut a batch into what goes through the model at once, equally often on every process."""
        return cut(batch, self._rows)

    def loss(self, piece: Piece) -> Tensor:
        """Return what a piece adds to the mean loss over the supervised positions of the global batch."""
        return mean_loss(self.predict(piece))

    def predict(self, piece: Piece) -> Prediction:
        """Run the model on a piece; only the supervised positions go through the language-model head."""
        targets = piece.batch["labels"][:, 1:]
        supervised = targets != IGNORED
        return Prediction(self._logits(piece.batch, supervised), targets[supervised], piece.positions)

    def accumulate(
        self, pieces: Sequence[Piece], shares: Callable[[Piece], tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return sums over the pieces of all processes, and the gradient of the first of them.

        A trainable whose ``requires_grad`` a method has taken away for a while costs nothing and has zeros.

        Args:
            pieces: what ``pieces`` gave, at least one.
            shares: what a piece adds to each sum; a mean is divided by the count over all pieces and processes.
        """
        moving = [trainable for trainable in self._trainables if trainable.requires_grad]
        sums: list[Tensor] = []
        total: list[Tensor] = []
        for piece in pieces:
            added = shares(piece)
            parts = torch.autograd.grad(added[0], moving, materialize_grads=True)
            values = [share.detach().clone() for share in added]
            # Not in place: of one piece, several gradients may be one tensor.
            sums = [one + other for one, other in zip(sums, values, strict=True)] if sums else values
            total = [one + other for one, other in zip(total, parts, strict=True)] if total else list(parts)
        found = iter(total)
        gradient = [next(found) if each.requires_grad else torch.zeros_like(each) for each in self._trainables]
        all_reduce_sum(*sums, *gradient)
        return sums, gradient

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the global L2 norm over tensors that every process holds in full."""
        return torch.nn.utils.get_total_norm(tensors)

    def perturbed(self, direction: Sequence[Tensor], scale: Tensor | float) -> AbstractContextManager[None]:
        """Shift the trainables by ``scale * direction``; on leaving, restore them bit for bit from a copy."""

        def move() -> None:
            for parameter, part in zip(self._trainables, direction, strict=True):
                parameter.add_(part * scale)

        return self._changed(move)

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Give the trainables other values; on leaving, restore them bit for bit from a copy."""

        def place() -> None:
            for parameter, value in zip(self._trainables, values, strict=True):
                parameter.copy_(value)

        return self._changed(place)

    @contextmanager
    def _changed(self, change: Callable[[], None]) -> Iterator[None]:
        kept = [parameter.detach().clone() for parameter in self._trainables]
        try:
            with torch.no_grad():
                change()
            yield
        finally:
            with torch.no_grad():
                for parameter, copy in zip(self._trainables, kept, strict=True):
                    parameter.copy_(copy)

    def set_gradient(self, gradient: Sequence[Tensor | None]) -> None:
        """Put a combined gradient into ``.grad``; the argument is not kept.

        Where it is None, there is no ``.grad``: a trainable without one is left out of the optimizer's step.
        """
        for parameter, part in zip(self._trainables, gradient, strict=True):
            parameter.grad = None if part is None else part.clone()

    def _logits(self, batch: Mapping[str, Tensor], supervised: Tensor) -> Tensor:
        """Return the logits of the supervised positions, ``[positions, vocabulary]``.

        The rest never reaches the head: for large vocabularies that is most of the time and memory of a step. The
        selection sits in front of the head, so what a model does with its logits afterwards (soft-capping) still holds.
        """
        places = torch.nn.functional.pad(supervised, (0, 1)).flatten().nonzero().squeeze(1)

        def select(_module: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *rest = inputs
            return (hidden.flatten(0, -2).index_select(0, places), *rest)

        handle = self._head.register_forward_pre_hook(select)
        try:
            with torch.autocast(places.device.type, dtype=torch.bfloat16, enabled=self._autocast):
                output = self._model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                )
        finally:
            handle.remove()
        logits: Tensor = output.logits
        if logits.dim() != 2 or len(logits) != len(places):
            raise ModelError(
                f"{type(self._model).__name__} gave logits of shape {list(logits.shape)} for {len(places)} positions; "
                "expected one row of its output embeddings for each"
            )
        return logits


def mean_loss(prediction: Prediction) -> Tensor:
    """Return what a piece adds to the mean cross-entropy over the supervised positions of the global batch."""
    total = cross_entropy(prediction.logits.float(), prediction.targets, reduction="sum")
    return total / prediction.positions.clamp(min=1)


def _check(trainables: Mapping[str, Parameter]) -> None:
    if not trainables:
        raise ModelError("the model has no trainable parameters; expected an adapter or unfrozen weights")
    wrong = [f"{name} ({p.dtype})" for name, p in trainables.items() if p.dtype != torch.float32]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ModelError(
            f"{len(wrong)} of {len(trainables)} trainable parameters are not float32: {shown}; a small step vanishes "
            "in lower precision, so cast the adapter to float32 (the base model may stay as it is)"
        )
