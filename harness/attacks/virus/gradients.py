"""Gradients of mixed rows under the victim: compared with that of the first row, and with respect to its tokens.

``l(x)`` is the mean cross-entropy over the supervised positions of a row ``x``, ``g(x)`` its gradient with respect to
the factors of the aligned adapter. All rows that are compared have one length and one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.errors import ModelError
from harness.models.forward import in_token_batches

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

BATCH_TOKENS = 2048
"""Tokens per forward and backward pass; affects speed only."""


class Alignment(NamedTuple):
    """A row's gradient ``g`` compared with ``g_0``: the inner product ``<g, g_0>`` and the norm of ``g``."""

    inner: float
    norm: float


class VictimGradients:
    """Computes gradients of rows; leaves the victim as it is.

    Args:
        model: the victim, in eval mode, with plain LoRA factors as its only trainable parameters.
        prompt: number of tokens of a row that are not supervised.

    Raises:
        ModelError: something other than the weight of a linear layer is trainable.
    """

    def __init__(self, model: Module, prompt: int) -> None:
        """Find the trainable layers."""
        self._model: Any = model
        self._prompt = prompt
        self._layers: list[Any] = [
            layer
            for layer in model.modules()
            if isinstance(layer, torch.nn.Linear) and layer.weight.requires_grad and layer.bias is None
        ]
        self._weights: list[Tensor] = [layer.weight for layer in self._layers]
        if len(self._weights) != sum(each.requires_grad for each in model.parameters()):
            raise ModelError("the victim's adapter is not plain LoRA; expected `align.adapter.variant=null`")
        self._start: list[Tensor] = []

    @property
    def embeddings(self) -> Tensor:
        """The input embeddings, ``[vocabulary, width]``."""
        weight: Tensor = self._model.get_input_embeddings().weight
        return weight

    def begin(self, row: list[int]) -> float:
        """Take the gradient of a row as ``g_0``, with which later rows are compared; return its norm."""
        loss = self._losses(self._embedded([row]), [row])[0]
        self._start = [each.detach() for each in torch.autograd.grad(loss, self._weights)]
        return _norm(self._start)

    def compare(self, rows: Sequence[list[int]]) -> list[Alignment]:
        """Compare the gradients of rows with ``g_0``; the gradient of each row is computed apart from the others'."""
        return in_token_batches(
            rows,
            self._compared,
            batch_tokens=BATCH_TOKENS,
            device=self._weights[0].device,
            model="attack's victim",
            remedy="A smaller `model` or shorter examples need less.",
        )

    def token_gradient(self, row: list[int], suffix: slice) -> Tensor:
        """Return the gradient of ``<g, g_0> / |g|`` with respect to the embeddings of a suffix, ``[suffix, width]``.

        The norm ``|g|`` is a constant in it, and the labels of the row are, as published.
        """
        embedded = self._embedded([row]).detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
            loss = self._losses(embedded, [row])[0]
            gradient = torch.autograd.grad(loss, self._weights, create_graph=True)
            inner = torch.stack([(own * start).sum() for own, start in zip(gradient, self._start, strict=True)]).sum()
            (found,) = torch.autograd.grad(inner / _norm(gradient), embedded)
        part: Tensor = found[0, suffix]
        return part.detach()

    def _compared(self, rows: Sequence[list[int]]) -> list[Alignment]:
        """Compare a batch of rows with ``g_0``.

        The gradient of a linear layer's weight for one row is the sum over time of the outer products of the gradients
        of its outputs and its inputs, so one backward pass gives those of all rows.
        """
        with self._recorded() as (inputs, outputs):
            losses = self._losses(self._embedded(rows), rows)
        errors = torch.autograd.grad(losses.sum(), [outputs[layer] for layer in self._layers])
        inner, squares = torch.zeros_like(losses), torch.zeros_like(losses)
        for layer, error, start in zip(self._layers, errors, self._start, strict=True):
            own = torch.einsum("nto,nti->noi", error.to(start.dtype), inputs[layer].to(start.dtype))
            inner += (own * start).sum((1, 2))
            squares += (own**2).sum((1, 2))
        return [Alignment(*pair) for pair in zip(inner.tolist(), squares.sqrt().tolist(), strict=True)]

    def _embedded(self, rows: Sequence[list[int]]) -> Tensor:
        embedded: Tensor = self.embeddings[torch.tensor(rows, device=self.embeddings.device)]
        return embedded

    def _losses(self, embedded: Tensor, rows: Sequence[list[int]]) -> Tensor:
        """Return the loss of each row, ``[rows]``."""
        targets = torch.tensor(rows, device=embedded.device)[:, self._prompt :]
        logits = self._model(inputs_embeds=embedded, logits_to_keep=targets.shape[1] + 1, use_cache=False).logits
        # The last position predicts what follows the row.
        predicted = logits[:, :-1].float() if logits.dtype != torch.float64 else logits[:, :-1]
        return torch.nn.functional.cross_entropy(predicted.transpose(1, 2), targets, reduction="none").mean(1)

    @contextmanager
    def _recorded(self) -> Iterator[tuple[dict[Module, Tensor], dict[Module, Tensor]]]:
        """Record inputs and outputs of the trainable layers, each ``[rows, time, features]``."""
        inputs: dict[Module, Tensor] = {}
        outputs: dict[Module, Tensor] = {}

        def record(layer: Module, given: tuple[Tensor, ...], returned: Tensor) -> None:
            inputs[layer], outputs[layer] = given[0].detach(), returned

        hooks = [layer.register_forward_hook(record) for layer in self._layers]
        try:
            yield inputs, outputs
        finally:
            for hook in hooks:
                hook.remove()


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(torch.stack([(each.detach() ** 2).sum() for each in gradient]).sum().sqrt())
