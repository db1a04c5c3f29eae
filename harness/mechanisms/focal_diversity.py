"""Focal diversity: do the members of an ensemble fail on the same rows?

Tekin et al., LLM-TOPLA (Findings of EMNLP 2024, arXiv 2410.03953), as computed by the authors' code for later papers;
the closed form needs no histogram of failure counts. For a focal member f, over the rows N_f on which it fails,

    d_f = 1 - sum c(c-1) / ((S-1) sum c),    d = mean of d_f over the S members,

where c is the number of members that fail on a row. 0: all members always fail together; 1: never two at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF = 0.5
"""An answer fails if its quality is at most this."""


def failures(quality: NDArray[Any]) -> NDArray[Any]:
    """Return which answers fail; those that could not be judged (NaN) do not."""
    return quality <= HALF


def focal_diversities(failed: NDArray[Any]) -> NDArray[Any]:
    """Return the diversity from each member's point of view, between 0 and 1.

    Args:
        failed: ``[rows, members]``, at least two members. A member that never fails has diversity 1, as in the authors'
            code: no other member fails together with it.
    """
    import numpy as np

    failed = np.asarray(failed, dtype="float64")
    members = failed.shape[1]
    together = failed.sum(axis=1)
    pairs, single = failed.T @ (together * (together - 1)), failed.T @ together
    with np.errstate(invalid="ignore", divide="ignore"):
        diversities: NDArray[Any] = 1 - pairs / ((members - 1) * single)
    return np.where(single > 0, diversities, 1.0)


def focal_diversity(failed: NDArray[Any]) -> float:
    """Return the mean of the members' focal diversities.

    Args:
        failed: as for ``focal_diversities``.
    """
    return float(focal_diversities(failed).mean())
