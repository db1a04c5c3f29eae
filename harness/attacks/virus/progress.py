"""What is known of a row after some steps of its optimization, and what these cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A row after some steps.

    Attributes:
        steps: steps that were taken.
        suffix: the best suffix so far.
        text: the same as text.
        first: the objective of the mixed row.
        objective: that of the best suffix.
        guard_loss: the guard's loss at the best suffix, in nats; None if it has no weight.
        cosine: the cosine of its gradient and that of the mixed row; None if it has no weight.
        exchanged: tokens that differ from those of the mixed row.
        second_order: backward passes through a gradient of the victim.
        victim_gradients: rows whose gradient under the victim was computed.
        guard_passes: rows that the guard read.
    """

    steps: int = 0
    suffix: list[int]
    text: str
    first: float | None = None
    objective: float | None = None
    guard_loss: float | None = None
    cosine: float | None = None
    exchanged: int = 0
    second_order: int = 0
    victim_gradients: int = 0
    guard_passes: int = 0


COSTS = ("second_order", "victim_gradients", "guard_passes")
"""The fields that count work."""

TEXTS = ("suffix", "text")
"""The fields that are in the row itself."""
