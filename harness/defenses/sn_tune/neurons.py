"""Neurons of a decoder that matter for every one of a set of queries.

A neuron is an output row of the query, key, value or up projection, or an input column of the down projection. Its
importance for a query of T tokens is the change of an output when it is removed, an L2 norm over the tokens:

- up row and down column k: ``||a[:, k]|| * ||W_down[:, k]||``, with ``a`` the input of the down projection;
- value row k: ``||V[:, k]|| * ||W_o[:, k]||``, as if every token attended to itself alone;
- query or key row k: ``||softmax(Q K^T / sqrt(d)) - softmax((Q K^T - Q[:, k] K[:, k]^T) / sqrt(d))||``, in the head
  that has it, before the rotation by position and under the causal mask.

Where query heads share a value head, its columns of ``W_o`` are summed over them; where they share a key head, the
squares of the changes are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from harness.corpora.encode import IGNORED
from harness.errors import ModelError
from harness.models.decoder import layers
from harness.protocols import Learner
from harness.training.distributed import all_reduce_sum

ATTENTION = ("q_proj", "k_proj", "v_proj")
UP, DOWN, OUT = "up_proj", "down_proj", "o_proj"
USED = (*ATTENTION, OUT, UP, DOWN)

Key = tuple[int, str]
"""A layer and one of its projections."""


class Heads(NamedTuple):
    """The shape of attention."""

    queries: int
    keys: int
    size: int


class Reading(NamedTuple):
    """What a forward pass leaves of a layer: outputs of projections, inputs of others, norms of columns.

    Attributes:
        outputs: of the query, key and value projection, ``[batch, time, out]``.
        hidden: the input of the down projection, ``[batch, time, neurons]``.
        out: effective norms of the columns of ``W_o``, one for each row of the value projection.
        down: norms of the columns of ``W_down``.
    """

    outputs: dict[str, Tensor]
    hidden: Tensor
    out: Tensor
    down: Tensor


class Neurons:
    """Scores the neurons of a model.

    Args:
        learner: the model, whose adapter does not change the output yet.

    Raises:
        ModelError: a layer does not have exactly one of each projection.
    """

    def __init__(self, learner: Learner) -> None:
        """Find the projections."""
        self._learner = learner
        self._layers = [_projections(layer, index) for index, layer in enumerate(layers(learner.module))]
        config: Any = learner.module.config
        queries = int(config.num_attention_heads)
        first = _linear(self._layers[0]["q_proj"])
        self._heads = Heads(
            queries, int(getattr(config, "num_key_value_heads", queries)), first.out_features // queries
        )

    def counts(
        self,
        batch: Mapping[str, Tensor],
        *,
        whole: bool,
        threshold: float | None,
        attention_share: float,
        mlp_share: float,
    ) -> tuple[dict[Key, Tensor], Tensor]:
        """Return how often each neuron is among the important ones, over all processes, and the number of queries.

        Args:
            batch: this process's share of the queries.
            whole: take the whole text as the query, not only the prompt.
            threshold: the least importance of an important neuron; None takes shares.
            attention_share: fraction of the rows of a projection of attention that count as important for a query.
            mlp_share: the same for the neurons of the feed-forward block.
        """
        lengths = _lengths(batch, whole=whole)
        pieces = self._learner.pieces(batch)
        found: dict[Key, Tensor] = {}
        queries = torch.zeros((), device=pieces[0].positions.device)
        for piece in pieces:
            with torch.no_grad(), self._reading() as readings:
                self._learner.predict(piece)
            for place, row in enumerate(piece.rows):
                queries += 1
                for key, scores in self._scores(readings, place, lengths[row]).items():
                    share = mlp_share if key[1] == UP else attention_share
                    important = _important(scores, threshold, share).float()
                    found[key] = found[key] + important if key in found else important
        if not found:
            # Another process has rows left: this one takes part in the sum.
            found = self._nothing(queries.device)
        all_reduce_sum(queries, *found.values())
        return found, queries

    def _nothing(self, device: torch.device) -> dict[Key, Tensor]:
        return {
            (index, name): torch.zeros(_linear(part[name]).out_features, device=device)
            for index, part in enumerate(self._layers)
            for name in (*ATTENTION, UP)
        }

    def _scores(self, readings: Mapping[int, Reading], place: int, length: int) -> dict[Key, Tensor]:
        """Return the importances of one query, by layer and projection; ``UP`` stands for the down projection too."""
        found: dict[Key, Tensor] = {}
        for layer, reading in readings.items():
            q, k, v = (reading.outputs[name][place, :length].float() for name in ATTENTION)
            found[layer, "q_proj"], found[layer, "k_proj"] = attention_importances(q, k, self._heads)
            found[layer, "v_proj"] = v.norm(dim=0) * reading.out
            found[layer, UP] = reading.hidden[place, :length].float().norm(dim=0) * reading.down
        return found

    @contextmanager
    def _reading(self) -> Iterator[dict[int, Reading]]:
        """Yield a dict that a forward pass fills."""
        kept: dict[int, Reading] = {}
        outputs: dict[Key, Tensor] = {}
        columns: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for index, part in enumerate(self._layers):

                def keep(_module: Module, _inputs: Any, output: Tensor, *, key: Key) -> None:
                    outputs[key] = output

                def at_out(module: Module, _inputs: Any, *, index: int) -> None:
                    # Here, because only during the pass does a sharded layer have its whole matrix.
                    weight = _linear(module).weight.detach().float()
                    heads = self._heads
                    grouped = weight.view(len(weight), heads.keys, heads.queries // heads.keys, heads.size)
                    columns[index] = grouped.sum(dim=2).flatten(1).norm(dim=0)

                def at_down(module: Module, inputs: tuple[Tensor, ...], *, index: int) -> None:
                    own = {name: outputs[index, name] for name in ATTENTION}
                    down = _linear(module).weight.detach().float().norm(dim=0)
                    kept[index] = Reading(own, inputs[0], columns[index], down)

                for name in ATTENTION:
                    stack.callback(part[name].register_forward_hook(partial(keep, key=(index, name))).remove)
                stack.callback(_linear(part[OUT]).register_forward_pre_hook(partial(at_out, index=index)).remove)
                stack.callback(_linear(part[DOWN]).register_forward_pre_hook(partial(at_down, index=index)).remove)
            yield kept


def attention_importances(q: Tensor, k: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Return the importances of the rows of the query and the key projection, for one query of T tokens.

    Args:
        q: ``[T, queries * size]``.
        k: ``[T, keys * size]``.
        heads: the shape of attention.
    """
    time, group, scale = len(q), heads.queries // heads.keys, math.sqrt(heads.size)
    q, k = q.view(time, heads.queries, heads.size), k.view(time, heads.keys, heads.size)
    hidden = torch.ones(time, time, dtype=torch.bool, device=q.device).triu(1)
    of_queries, of_keys = [], torch.zeros(heads.keys, heads.size, device=q.device)
    for head in range(heads.queries):
        own, other = q[:, head], k[:, head // group]
        scores = (own @ other.T).masked_fill(hidden, -math.inf)
        # One matrix of scores for each row that is removed, [size, T, T].
        removed = scores - own.T[:, :, None] * other.T[:, None, :]
        change = (torch.softmax(removed / scale, dim=-1) - torch.softmax(scores / scale, dim=-1)).square().sum((1, 2))
        of_queries.append(change.sqrt())
        of_keys[head // group] += change
    return torch.cat(of_queries), of_keys.sqrt().flatten()


def _important(scores: Tensor, threshold: float | None, share: float) -> Tensor:
    """Return which scores reach the threshold, or are among the highest of their number."""
    if threshold is not None:
        return scores >= threshold
    highest = scores.topk(max(math.ceil(share * len(scores)), 1)).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(0, highest, True)


def _lengths(batch: Mapping[str, Tensor], *, whole: bool) -> list[int]:
    """Return the number of tokens of each query."""
    real: list[int] = batch["attention_mask"].sum(dim=1).tolist()
    if whole:
        return real
    supervised = batch["labels"] != IGNORED
    # The tokens in front of the first supervised one; all of an example without any.
    return [
        int(row.int().argmax()) or count if bool(row.any()) else count
        for row, count in zip(supervised, real, strict=True)
    ]


def _projections(layer: Module, index: int) -> dict[str, Module]:
    found: dict[str, list[Module]] = {name: [] for name in USED}
    for name, module in layer.named_modules():
        last = name.rpartition(".")[2]
        if last in found:
            found[last].append(module)
    missing = [name for name, modules in found.items() if len(modules) != 1]
    if missing:
        raise ModelError(
            f"layer {index} does not have exactly one of each projection that `sn_tune` scores: "
            f"{', '.join(f'`{name}`' for name in missing)}; expected a decoder with {', '.join(USED)}"
        )
    return {name: modules[0] for name, modules in found.items()}


def _linear(module: Module) -> Any:
    """Return the linear layer itself, below an adapter."""
    base = getattr(module, "get_base_layer", None)
    return base() if base else module
