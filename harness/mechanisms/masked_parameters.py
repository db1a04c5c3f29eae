"""Masked parameters: entries of trainable parameters that keep their values while others of the same tensor train.

A gradient of zero does not keep an entry where it is: AdamW's weight decay moves it. Masked entries are therefore put
back after each optimizer step. Their moments stay zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Gradient, Learner


class MaskedParameters:
    """The trained entries of the trainable parameters, and the values of the others.

    Args:
        learner: the model.
        trained: for each trainable parameter, a mask of its trained entries, which broadcasts to its shape; None where
            nothing is trained.
        kept: the values of all entries; those outside the masks are kept.
    """

    def __init__(self, learner: Learner, trained: Sequence[Tensor | None], kept: Gradient) -> None:
        """Store the parts."""
        self._learner = learner
        self._trained = list(trained)
        self._kept = kept

    def gradient(self, gradient: Gradient) -> list[Tensor | None]:
        """Return the gradient of the trained entries; None where nothing is trained, so that the optimizer skips it."""
        return [None if mask is None else part * mask for part, mask in zip(gradient, self._trained, strict=True)]

    def restore(self) -> None:
        """Put the entries outside the masks back, bit for bit."""
        import torch

        with torch.no_grad():
            for parameter, mask, kept in zip(self._learner.trainables, self._trained, self._kept, strict=True):
                if mask is not None:
                    parameter.copy_(torch.where(mask, parameter, kept))
