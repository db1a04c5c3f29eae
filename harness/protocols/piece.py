"""Micro-batches: what goes through the model at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.corpora.transfer import on_device

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols.learner import Batch


class Piece(NamedTuple):
    """A micro-batch: the part of a process's share of a batch that goes through the model at once.

    Whatever depends on the values of labels and masks was computed on the host, so using a micro-batch never waits for
    the device.

    Attributes:
        number: its index among the micro-batches of the share, counted from 0.
        batch: its examples, on the model's device, padded to the longest of them or a little further.
        rows: their indices in the share. Empty if other processes have more micro-batches than this one: ``batch`` is
            then one example without supervised positions, which contributes zero.
        positions: number of supervised positions of the global batch, over all micro-batches and processes; a scalar
            on the device.
        supervised: ``[n]``, the positions whose next token is supervised, as indices into ``[rows * time]``.
        targets: ``[n]``, these next tokens.
        counts: number of supervised positions of each example of ``batch``.
    """

    number: int
    batch: Batch
    rows: tuple[int, ...]
    positions: Tensor
    supervised: Tensor
    targets: Tensor
    counts: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """Return the micro-batch's part of a tensor ``[rows, time, ...]`` of the whole share.

        It has the shape of ``batch`` and is on its device; zero where the share has nothing.
        """
        labels = self.batch["labels"]
        rows, time = labels.shape
        if not self.rows:
            return whole.new_zeros((rows, time, *whole.shape[2:]), device=labels.device)
        part = on_device(self._pick(whole)[:, :time], labels.device)
        return _padded(part, time)

    def put(self, whole: Tensor, part: Tensor) -> None:
        """Copy the micro-batch's part into a tensor ``[rows, time, ...]`` of the whole share; the inverse of ``of``."""
        if not self.rows:
            return
        time = min(whole.shape[1], part.shape[1])
        whole[:, :time].index_copy_(0, self._index(whole), part[:, :time])

    def where(self, mask: Tensor) -> Tensor:
        """Return the positions of the micro-batch that a mask ``[rows, time]`` of the whole share selects.

        Args:
            mask: on the host; False in the padding.

        Returns:
            Indices into ``[rows * time]`` of ``batch``, on its device.
        """
        labels = self.batch["labels"]
        part = _padded(self._pick(mask)[:, : labels.shape[1]], labels.shape[1])
        return on_device(part.flatten().nonzero().squeeze(1), labels.device)

    def _pick(self, whole: Tensor) -> Tensor:
        first = self.rows[0] if self.rows else 0
        if self.rows == tuple(range(first, first + len(self.rows))):
            return whole[first : first + len(self.rows)]
        return whole.index_select(0, self._index(whole))

    def _index(self, whole: Tensor) -> Tensor:
        import torch

        return on_device(torch.tensor(self.rows), whole.device)


def _padded(part: Tensor, time: int) -> Tensor:
    """Return a tensor ``[rows, time, ...]`` with zeros up to a length."""
    import torch

    gap = time - part.shape[1]
    if gap <= 0:
        return part
    return torch.cat([part, part.new_zeros((len(part), gap, *part.shape[2:]))], dim=1)
