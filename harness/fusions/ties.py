"""TIES: small entries are dropped, a sign is elected for each entry, and the entries that agree with it are averaged.

Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal: "TIES-Merging: Resolving Interference When Merging
Models", NeurIPS 2023 (arXiv 2306.01708), algorithm 1. With ``D_e`` the change of a matrix by expert ``e``:

1. trim: the ``density`` share of the entries of ``D_e`` with the largest magnitude is kept, the others become 0;
2. elect: the sign of an entry is that of the sum of the trimmed entries; positive if the sum is 0;
3. merge: the mean over those experts whose trimmed entry has that sign, times ``scale``.

The result has full rank, so it is stored as the closest product of rank ``rank`` (singular value decomposition), and
the facts say what this loses: ``lost_norm`` is the norm of what is left out as a share of the norm of the result, over
all matrices. At the rank of the matrices nothing is lost. The three steps are those of ``peft.utils.merge_utils.ties``.

Deviations from the authors' code: entries are trimmed within each matrix, as in ``peft``, instead of over the whole
model; only the adapted matrices take part; a sum of 0 has a positive sign instead of that of the majority of entries.

Fidelity: hand-computed only; density 0.2 and scale 1 are the paper's recommendation without tuning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import counts, positive
from harness.errors import Problem
from harness.protocols import Fused, Product

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Ties:
    """Settings of TIES.

    Attributes:
        density: share of the entries of each change that is kept, in (0, 1].
        scale: factor of the merged change.
        rank: rank of the stored change; null is the sum of the experts' ranks.
    """

    name: ClassVar[str] = "ties"
    version: ClassVar[int] = 1

    density: float = 0.2
    scale: float = 1.0
    rank: int | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*positive(self, "density", "scale"), *counts(self, "rank")]
        if self.density > 1:
            found.append(Problem("density", f"{self.density} is a share of the entries; expected at most 1"))
        return found

    def fuse(self, experts: Sequence[Mapping[str, Product]]) -> Fused:
        """Merge the experts; report the rank, and the share of the norm that the rank loses."""
        asked = self.rank or sum(len(next(iter(expert.values())).a) for expert in experts)
        products, lost, whole = {}, 0.0, 0.0
        for layer in experts[0]:
            change = self.scale * merged([part.b @ part.a for part in (expert[layer] for expert in experts)], self)
            products[layer], left_out = of_rank(change, asked)
            lost += left_out
            whole += float(change.double().square().sum())
        return Fused(products, {"rank": asked, "lost_norm": (lost / whole) ** 0.5 if whole else 0.0})


def merged(changes: Sequence[Tensor], settings: Ties) -> Tensor:
    """Return the three steps of TIES for the changes of one matrix, each ``[out, in]``, without the scale."""
    import torch
    from peft.utils.merge_utils import ties

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a density of 1
        found: Tensor = ties(list(changes), torch.ones(len(changes), device=changes[0].device), settings.density)
    return found


def of_rank(change: Tensor, rank: int) -> tuple[Product, float]:
    """Return the closest product of a rank, padded with zeros beyond that of the matrix, and the squared norm left out.

    Args:
        change: ``[out, in]``.
        rank: the rank of the product.
    """
    import torch
    from torch.nn.functional import pad

    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    b = (left[:, :kept] * root).to(change.dtype)
    a = (root[:, None] * right[:kept]).to(change.dtype)
    product = Product(pad(b, (0, rank - kept)), pad(a, (0, 0, 0, rank - kept)))
    return product, float(values[kept:].square().sum())
