"""The model under training, as methods see it: gradients, norms and reversible perturbations of trainable parameters.

``.grad`` stays as it is until a method passes its combined gradient to ``set_gradient``, see
``harness.training.backward``. The loss of a micro-batch is the sum over its tokens divided by the token count of the
global batch, and gradients are summed over micro-batches and processes: every process then holds the gradient of the
global batch, so norms and perturbations agree without further communication, however the batch was split. Where the
trainable parameters are sharded, gradients and copies of parameters are sharded alike (``DTensor``): arithmetic between
them stays elementwise, and what mixes them with other tensors raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import cross_entropy

from harness.errors import ModelError
from harness.protocols import Piece, Prediction, Product
from harness.training.backward import backward_passes
from harness.training.budget import Precision
from harness.training.distributed import all_reduce_sum, is_sharded, whole
from harness.training.passes import Passes
from harness.training.pieces import cut


class CausalLearner:
    """A causal language model; satisfies ``protocols.Learner``.

    Attributes:
        steps_taken: the number of optimizer steps taken so far; set by the trainer.
        example_count: the number of the stage's own examples that are trained on; set by the trainer.
        gradients_set: how often ``set_gradient`` was called.

    Args:
        model: a causal language model on its device, a PEFT model or not, without DDP wrapper; its parameters may be
            sharded by ``harness.training.fsdp``.
        precision: the dtype of the forward pass.
        rows_at_once: the micro-batch size; None puts the whole batch through the model at once.
        passes: how the forward passes run; None is plainly, on a GPU without the padding mask.
        alignment: the change of the weights by alignment, see ``protocols.Learner``; None is empty.

    Raises:
        ModelError: no parameter is trainable, a trainable one is not float32, or the model has no output embeddings.
    """

    def __init__(
        self,
        model: Module,
        *,
        precision: Precision = Precision.FLOAT32,
        rows_at_once: int | None = None,
        passes: Passes | None = None,
        alignment: Mapping[str, Product] | None = None,
    ) -> None:
        """Collect the trainable parameters and the language-model head."""
        trainables = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        _check(trainables)
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, Module):
            raise ModelError(f"{type(model).__name__} has no output embeddings; expected a causal language model")
        self.steps_taken = 0
        self.example_count = 0
        self.gradients_set = 0
        self._model: Any = model
        self._head = head
        self._trainables = tuple(trainables.values())
        self._device = self._trainables[0].device
        self._rows = rows_at_once
        self._passes = passes or Passes(padding_mask=self._device.type == "cpu")
        self._autocast = precision is Precision.BFLOAT16
        self._alignment = {
            name: Product(*(factor.to(self._device) for factor in change)) for name, change in (alignment or {}).items()
        }

    @property
    def module(self) -> Module:
        """The model itself, for hooks."""
        return self._model  # type: ignore[no-any-return]

    @property
    def trainables(self) -> Sequence[Parameter]:
        """The parameters that the optimizer updates; float32, in the order of ``named_parameters``."""
        return self._trainables

    @property
    def alignment(self) -> Mapping[str, Product]:
        """The change of the weights by alignment, by the name of the adapted layer, on the model's device."""
        return self._alignment

    def gradient(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss over the supervised positions of the global batch, and its gradient.

        A trainable that the loss does not depend on has a gradient of zeros.

        Args:
            batch: ``input_ids``, ``attention_mask`` and ``labels``, each ``[batch, time]``, right-padded, on the CPU.
        """
        (loss,), gradient = self.accumulate(self.pieces(batch), lambda piece: (self.loss(piece),))
        return loss, gradient

    def value(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the supervised positions of the global batch, without an autograd graph."""
        with torch.no_grad():
            loss = torch.stack([self.loss(piece) for piece in self.pieces(batch)]).sum()
        all_reduce_sum(loss)
        return loss

    def pieces(self, batch: Mapping[str, Tensor], *, like: Sequence[Piece] | None = None) -> list[Piece]:
        """Split a batch into micro-batches, the same number on every process; a collective call."""
        return cut(batch, self._rows, device=self._device, width=self._passes.width, like=like)

    def loss(self, piece: Piece) -> Tensor:
        """Return a micro-batch's contribution to the mean loss over the supervised positions of the global batch."""
        return mean_loss(self.predict(piece))

    def predict(self, piece: Piece) -> Prediction:
        """Run the model on a micro-batch; only the supervised positions go through the language-model head."""
        return Prediction(self._logits(piece), piece.targets, piece.positions)

    def accumulate(
        self, pieces: Sequence[Piece], shares: Callable[[Piece], tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return sums over the micro-batches of all processes, and the gradient of the first sum.

        A trainable parameter whose ``requires_grad`` a method has temporarily disabled costs nothing; its gradient is
        zero.

        Args:
            pieces: the result of ``pieces``, at least one.
            shares: returns a micro-batch's contribution to each sum; for a mean, divide by the count over all
                micro-batches and processes.
        """
        passes = backward_passes(self._trainables)
        sums: list[Tensor] = []
        for piece in pieces:
            added = shares(piece)
            passes.add(added[0])
            values = [share.detach().clone() for share in added]
            sums = [one + other for one, other in zip(sums, values, strict=True)] if sums else values
            # Its graph would live on during the next pass. Nodes of the trainables belong to the stream on which they
            # were made, so a pass that meets them cannot be captured.
            del added
        all_reduce_sum(*sums)
        return sums, passes.gradient()

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the global L2 norm of tensors that are replicated on every process, or sharded over all."""
        return whole(torch.nn.utils.get_total_norm(tensors))

    def perturbed(self, direction: Sequence[Tensor], scale: Tensor | float) -> AbstractContextManager[None]:
        """Add ``scale * direction`` to the trainable parameters; restore them exactly on exit."""

        def perturb() -> None:
            for parameter, part in zip(self._trainables, direction, strict=True):
                parameter.add_(part * scale)

        return self._temporarily(perturb)

    @torch.no_grad()
    def assign(self, values: Sequence[Tensor]) -> None:
        """Set the trainable parameters to ``values``, in place."""
        for parameter, value in zip(self._trainables, values, strict=True):
            parameter.copy_(value)

    def with_weights(self, values: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Set the trainable parameters to ``values``; restore them exactly on exit."""
        return self._temporarily(lambda: self.assign(values))

    @contextmanager
    def _temporarily(self, change: Callable[[], None]) -> Iterator[None]:
        saved = [parameter.detach().clone() for parameter in self._trainables]
        try:
            with torch.no_grad():
                change()
            yield
        finally:
            with torch.no_grad():
                for parameter, copy in zip(self._trainables, saved, strict=True):
                    parameter.copy_(copy)

    def set_gradient(self, gradient: Sequence[Tensor | None]) -> None:
        """Copy the combined gradient into ``.grad``.

        Where it is None, ``.grad`` is None: the optimizer skips that parameter.
        """
        self.gradients_set += 1
        parts = [part for part in gradient if part is not None]
        # A product with one is a copy; on a GPU it takes a kernel for dozens of tensors, and `clone` one for each.
        many = parts and not is_sharded(parts[0])
        copies = iter(torch._foreach_mul(parts, 1.0) if many else [part.clone() for part in parts])
        for parameter, part in zip(self._trainables, gradient, strict=True):
            parameter.grad = None if part is None else next(copies)

    def _logits(self, piece: Piece) -> Tensor:
        """Return the logits of the supervised positions, ``[positions, vocabulary]``.

        The other positions never reach the head, which for large vocabularies takes most of the time and memory of a
        step. The selection is made in front of the head, so whatever the model does to its logits (soft-capping) still
        applies.
        """

        def select(_module: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *rest = inputs
            return (hidden.flatten(0, -2).index_select(0, piece.supervised), *rest)

        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16) if self._autocast else nullcontext()
        mask = piece.batch["attention_mask"] if self._passes.padding_mask else None
        handle = self._head.register_forward_pre_hook(select)
        try:
            with autocast:
                output = self._model(input_ids=piece.batch["input_ids"], attention_mask=mask, use_cache=False)
        finally:
            handle.remove()
        logits: Tensor = output.logits
        if logits.dim() != 2 or len(logits) != len(piece.supervised):
            raise ModelError(
                f"{type(self._model).__name__} returned logits of shape {list(logits.shape)} for "
                f"{len(piece.supervised)} supervised positions; expected `[positions, vocabulary]`, computed by its "
                "output embeddings"
            )
        return logits


def mean_loss(prediction: Prediction) -> Tensor:
    """Return a micro-batch's contribution to the mean cross-entropy over the global batch's supervised positions."""
    total = cross_entropy(prediction.logits.float(), prediction.targets, reduction="sum")
    return total / prediction.positions.clamp(min=1)


def _check(trainables: Mapping[str, Parameter]) -> None:
    if not trainables:
        raise ModelError("the model has no trainable parameters; expected an adapter or unfrozen weights")
    wrong = [f"{name} ({p.dtype})" for name, p in trainables.items() if p.dtype != torch.float32]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ModelError(
            f"{len(wrong)} of {len(trainables)} trainable parameters are not float32: {shown}; small updates are "
            "rounded away in lower precision, so cast the adapter to float32 (the base may keep its dtype)"
        )
