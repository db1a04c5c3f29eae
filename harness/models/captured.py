"""The passes of a small model's decoder as CUDA graphs, captured once for each shape.

A graph holds everything between the token ids and the last hidden states, forward and backward, so a pass is launched
twice instead of some thousand times. The head and the loss depend on how many positions are supervised and run as they
are. Weights may change between passes, in place; hooks inside of the decoder would not be called by a graph, so while
there are any, passes run as they are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module, Parameter

from harness.models.compiled import forward_of, hooks_inside
from harness.models.cuda_graphs import Record

log = logging.getLogger(__name__)

EAGER_PASSES = 2
"""Eager passes per shape before it is captured: libraries allocate their workspaces, and rare shapes are not worth a
graph."""


@contextmanager
def captured_decoder(model: Module, record: Record, rows: Collection[int]) -> Iterator[CapturedDecoder]:
    """Replay the passes of a model's decoder from graphs while the context lasts.

    Args:
        model: a causal language model without dropout and without checkpointed activations.
        record: captures on the model's device.
        rows: the numbers of rows that are captured for; batches of others go through the decoder as they are.
    """
    decoder: Module = model.get_decoder()  # type: ignore[operator]
    captured = CapturedDecoder(decoder, record, frozenset(rows))
    with forward_of(decoder, captured):
        yield captured


class CapturedDecoder:
    """The forward function of a decoder, replayed from graphs wherever that cannot be told from running it.

    A pass runs as it is if it is among the first of its kind, if there are hooks or other forward functions inside of
    the decoder, if it is given more than token ids, and if an earlier pass awaits its backward pass, since graphs share
    their memory.

    Attributes:
        trouble: why nothing is captured any more; empty as long as it works.
        graphs: number of captured passes.
        replayed: number of passes that were replayed.

    Args:
        decoder: the decoder; its own hooks run outside of this function.
        record: captures on its device.
        rows: as for ``captured_decoder``.
    """

    def __init__(self, decoder: Module, record: Record, rows: Collection[int]) -> None:
        """Start without graphs."""
        self.trouble = ""
        self.graphs = self.replayed = 0
        self._plain = decoder.forward
        inside = [part for part in decoder.modules() if part is not decoder]
        # A pass asks for these every time, of some thousand modules: what is empty most of the time is asked at once.
        self._hooks = hooks_inside(decoder)
        self._forwards = [(part.__dict__, part.__dict__.get("forward")) for part in inside]
        # All of them: a method may free parameters later that it has frozen for its first steps.
        self._parameters = list(decoder.parameters())
        self._record, self._rows = record, rows
        self._taken: Counter[Any] = Counter()
        self._passes: dict[Any, _Pass] = {}
        self._turn: ref[_Turn] | None = None

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the decoder."""
        ids = self._alone(args, named)
        if ids is None or self.trouble or self._awaits_backward() or self._changed():
            return self._plain(*args, **named)
        kind = self._kind(ids)
        if kind not in self._passes:
            self._taken[kind] += 1
            if self._taken[kind] <= EAGER_PASSES or not self._capture(kind, ids):
                return self._plain(*args, **named)
        return self._replay(self._passes[kind], ids)

    def _alone(self, args: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
        """Return the token ids if nothing else was given, and their number of rows is a usual one."""
        ids = named.get("input_ids")
        more = any(value is not None and value is not False for name, value in named.items() if name != "input_ids")
        return None if args or more or ids is None or len(ids) not in self._rows else ids

    def _changed(self) -> bool:
        """Return whether a method has put hooks or other forward functions inside of the decoder."""
        return any(self._hooks) or any(now.get("forward") is not own for now, own in self._forwards)

    def _awaits_backward(self) -> bool:
        turn = self._turn() if self._turn else None
        return turn is not None and not turn.done

    def _kind(self, ids: Tensor) -> Any:
        """Return all that a graph depends on: shapes, where the weights are, what has a gradient, number formats."""
        device = ids.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weights = tuple((weight.data_ptr(), weight.requires_grad) for weight in self._parameters)
        return ids.shape, torch.is_grad_enabled(), autocast, weights

    def _capture(self, kind: Any, ids: Tensor) -> bool:
        trained = [weight for weight in self._parameters if weight.requires_grad] if torch.is_grad_enabled() else []
        try:
            self._passes[kind] = _Pass(self._plain, trained, ids, self._record)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.trouble = f"a pass cannot be captured ({str(error).splitlines()[0]})"
            log.warning("training without CUDA graphs: %s", self.trouble)
            return False
        self.graphs += 1
        return True

    def _replay(self, captured: _Pass, ids: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        self.replayed += 1
        if captured.trained:
            turn = _Turn()
            self._turn = ref(turn)
            hidden = _Replay.apply(captured, turn, ids, *captured.trained)  # type: ignore[no-untyped-call]
        else:
            hidden = captured.forward(ids)
        return BaseModelOutputWithPast(last_hidden_state=hidden)


class _Turn:
    """A forward pass that awaits its backward pass until that is done, or can no longer come."""

    done = False


class _Pass:
    """A captured forward pass and, where parameters have gradients, its backward pass.

    Args:
        plain: the decoder's own forward function.
        trained: the parameters that have gradients.
        ids: token ids of the shape to capture.
        record: captures on their device.
    """

    def __init__(self, plain: Callable[..., Any], trained: list[Parameter], ids: Tensor, record: Record) -> None:
        self.trained = trained
        self._plain, self._ids = plain, ids.clone()
        self._forward = record(self._take_forward)
        if trained:
            self._sent = torch.empty_like(self._hidden)
            self._backward = record(self._take_backward)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the last hidden states, ``[rows, time, hidden]``."""
        self._ids.copy_(ids)
        self._forward()
        return self._hidden.detach().clone()

    def backward(self, sent: Tensor) -> list[Tensor | None]:
        """Return the gradients of the parameters, given that of the last hidden states; None where there is none."""
        self._sent.copy_(sent)
        self._backward()
        parts = iter(torch.split(self._flat.clone(), [weight.numel() for weight in self._used]))
        reached = {id(weight) for weight in self._used}
        return [next(parts).view_as(weight) if id(weight) in reached else None for weight in self.trained]

    def _take_forward(self) -> None:
        device = self._ids.device.type
        # Casts that autocast keeps would be made in the first pass alone.
        autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        with torch.set_grad_enabled(bool(self.trained)), autocast:
            self._hidden: Tensor = self._plain(input_ids=self._ids, use_cache=False).last_hidden_state

    def _take_backward(self) -> None:
        found = torch.autograd.grad(self._hidden, self.trained, self._sent, allow_unused=True)
        pairs = [(weight, part) for weight, part in zip(self.trained, found, strict=True) if part is not None]
        self._used = [weight for weight, _ in pairs]
        self._flat = torch.cat([part.flatten() for _, part in pairs])
        # Later passes would meet nodes of this one's graph, which belong to the stream of the capture.
        self._hidden = self._hidden.detach()


class _Replay(torch.autograd.Function):
    """A replayed pass, as autograd sees it: a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, captured: _Pass, turn: _Turn, ids: Tensor, *_trained: Parameter) -> Tensor:
        """Replay the forward pass."""
        ctx.captured, ctx.turn = captured, turn
        return captured.forward(ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor | None, ...]:
        """Replay the backward pass."""
        if ctx.turn.done:
            raise RuntimeError("the memory of a captured pass has been reused; it has one backward pass")
        ctx.turn.done = True
        return (None, None, None, *ctx.captured.backward(sent))
