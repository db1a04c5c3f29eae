"""Clipped updates with noise: the server clips what each client changed, and adds Gaussian noise to the mean.

Fed-SDP as described with Fed-CDP (Wei et al., arXiv:2107.08600; Geyer et al., arXiv:1712.07557), with the client as the
unit: ``start + (sum_k clip_C(update_k) + N(0, sigma^2 C^2)) / n``. Clients count equally, whatever their rows.

Deviations: the authors' code divides by one client too few, multiplies the noise by 0 and clips each tensor by itself;
here the noise is as stated and the whole update is clipped. No privacy budget is stated: it would need an accountant
and random participation.

Fidelity: hand-computed only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.engine.checks import not_negative, positive
from harness.errors import Problem
from harness.mechanisms.clipped_noise import Schedule, clipped, noise_like, scheduled, unreachable
from harness.protocols import Aggregate, Submission


@final
@dataclass(frozen=True, kw_only=True)
class DPNoise:
    """The unweighted mean of clipped updates, with noise.

    Attributes:
        clip: largest L2 norm of an update, ``C``.
        sigma: noise multiplier; the deviation of an entry is ``sigma C / n``.
        sigma_end: noise multiplier at the end of the run.
        clip_end: largest norm at the end of the run.
        schedule: how both change over the rounds.
    """

    name: ClassVar[str] = "dp_noise"
    version: ClassVar[int] = 1
    weighs_clients: ClassVar[bool] = False
    fewest: ClassVar[int] = 1
    clip: float = 1.0
    sigma: float = 0.01
    sigma_end: float = 0.01
    clip_end: float = 1.0
    schedule: Schedule = "constant"

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*positive(self, "clip", "clip_end"), *not_negative(self, "sigma", "sigma_end")]
        return found or [
            *unreachable(self.schedule, "sigma_end", self.sigma, self.sigma_end),
            *unreachable(self.schedule, "clip_end", self.clip, self.clip_end),
        ]

    def aggregate(self, sent: Submission) -> Aggregate:
        """Clip, sum, add noise, and divide."""
        done = sent.round / sent.rounds
        limit = scheduled(self.schedule, self.clip, self.clip_end, done)
        sigma = scheduled(self.schedule, self.sigma, self.sigma_end, done)
        count = len(sent.values)
        total = sum((clipped([update], limit, "global")[0] for update in sent.updates), start=sent.start.new_zeros(()))
        (noise,) = noise_like([sent.start], sigma * limit, sent.seed)
        weights = sent.start.new_full((count,), 1 / count)
        return Aggregate(sent.start + (total + noise) / count, weights)
