"""Hidden states between a decoder's layers at the positions of a batch, for losses on representations.

States are counted as transformers does: state 0 are the embeddings, state ``j`` is what the first ``j`` layers make of
them, and the last one is behind the final norm. The embeddings are not trained, so they are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.mechanisms.row_noise import real_positions
from harness.models.decoder import final_norm, kept_outputs, layers
from harness.protocols import Learner, Piece, Prediction
from harness.training.distributed import total_on_device


class Kept(NamedTuple):
    """What a forward pass left.

    Attributes:
        states: by number, ``[positions, hidden]``, float32.
        prediction: the model's output.
    """

    states: dict[int, Tensor]
    prediction: Prediction


class HiddenStates:
    """Reads the hidden states of a model.

    Args:
        learner: the model.

    Raises:
        ModelError: the layers or the final norm cannot be found.
    """

    def __init__(self, learner: Learner) -> None:
        """Find the modules."""
        self._learner = learner
        stack = [*layers(learner.module)[:-1], final_norm(learner.module)]
        self._blocks = dict(enumerate(stack, start=1))

    @property
    def depth(self) -> int:
        """The number of layers, which is that of the last state."""
        return len(self._blocks)

    def at(self, piece: Piece, positions: Tensor, numbers: Collection[int]) -> Kept:
        """Run the model on a micro-batch and return some states.

        Args:
            piece: the micro-batch.
            positions: mask of the whole share, ``[rows, time]``, on the CPU.
            numbers: of the states, 1 to ``depth``.
        """
        where = piece.where(positions)
        with kept_outputs({number: self._blocks[number] for number in numbers}) as kept:
            prediction = self._learner.predict(piece)
        states = {number: kept[number].flatten(0, -2).index_select(0, where).float() for number in numbers}
        return Kept(states, prediction)


def answer_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mask of the tokens of the answers, ``[batch, time]``."""
    return batch["labels"] >= 0


def text_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mask of the tokens of prompts and answers, ``[batch, time]``: all but padding."""
    return real_positions(batch)


def total(positions: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Return the number of positions over all processes, a scalar on the device, at least 1; a collective call.

    Args:
        positions: mask of this process's share, on the CPU.
        pieces: the micro-batches of the share.
    """
    return total_on_device(int(positions.sum()), pieces[0].positions.device).clamp(min=1)


def at_depth(shares: Sequence[float], depth: int) -> list[int]:
    """Return the numbers of the states after shares of the layers, each once, ascending; at least one layer each.

    Args:
        shares: fractions of the depth, 0 to 1, rounded down.
        depth: the number of layers.
    """
    return sorted({max(int(share * depth + 1e-9), 1) for share in shares})


def norms(states: Tensor) -> Tensor:
    """Return the L2 norm of each state, ``[...]`` of ``[..., hidden]``; the gradient at a zero state is zero."""
    found: Tensor = torch.linalg.vector_norm(states, dim=-1)
    return found
