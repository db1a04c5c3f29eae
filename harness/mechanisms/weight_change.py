"""Changes of adapted layers as products of factors: by alignment, by the user's fine-tuning, and after a repair.

A matrix ``W`` of an adapted layer goes from ``W_un`` (unaligned) to ``W_al = W_un + V`` by alignment and to
``W_ft = W_al + U`` by fine-tuning. ``V`` and ``U`` are sums of one or two products of an adapter's factors, so nothing
here needs a matrix of the layer's size, unless a method's own formula does. With ``finetune.adapter: double`` the
adapter holds ``U`` and the base holds ``V``; with ``single`` the adapter holds ``V + U``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import ModelError
from harness.protocols import Product

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from harness.protocols import Gradient, Learner

DIGITS = 5
"""Digits of a cosine, as in Safe LoRA's code."""


class AdaptedLayer(NamedTuple):
    """An adapted layer of a fine-tuned model.

    Attributes:
        name: name of the layer.
        a: the trainable factor ``A``, ``[rank, in]``.
        b: the trainable factor ``B``, ``[out, rank]``.
        scale: factor of their product.
        held: what the adapter held before fine-tuning, scale included: ``V`` with ``single``, None (nothing) with
            ``double``.
        alignment: ``V``; None if alignment did not adapt the layer, or did not change it.
    """

    name: str
    a: Parameter
    b: Parameter
    scale: float
    held: Product | None
    alignment: Product | None

    @property
    def product(self) -> Product:
        """What the adapter holds, scale included."""
        return Product(self.scale * self.b.detach(), self.a.detach())

    @property
    def user_change(self) -> Product:
        """``U``, the change by fine-tuning; of twice the adapter's rank with ``single``."""
        return self.product if self.held is None else total(self.product, scaled(self.held, -1))


def adapted_layers(learner: Learner, start: Gradient) -> list[AdaptedLayer]:
    """Return the adapted layers of a fine-tuned model, in the order of its parameters.

    Args:
        learner: the model.
        start: its trainable parameters before fine-tuning.

    Raises:
        ModelError: what is trained is not plain LoRA.
    """
    from harness.models.adapter import layer_of, scale_of, trained_pairs

    initial = {id(weight): value for weight, value in zip(learner.trainables, start, strict=True)}
    found = []
    for name_a, name_b in trained_pairs(learner.module):
        a, b = learner.module.get_parameter(name_a), learner.module.get_parameter(name_b)
        name = layer_of(name_a)
        scale, first_b = scale_of(learner.module, name), initial[id(b)]
        held = Product(scale * first_b, initial[id(a)]) if bool(first_b.any()) else None
        alignment = learner.alignment.get(name)
        if alignment is not None and bool((alignment.b == 0).all()):
            alignment = None
        found.append(AdaptedLayer(name, a, b, scale, held, alignment))
    return found


def aligned_layers(learner: Learner, start: Gradient) -> list[AdaptedLayer]:
    """Return the adapted layers of a fine-tuned model, for a method that declares ``UsesAlignment``.

    Raises:
        ModelError: what is trained is not plain LoRA, or alignment changed no layer.
    """
    found = adapted_layers(learner, start)
    if all(layer.alignment is None for layer in found):
        raise ModelError(
            f"alignment changed none of the {len(found)} adapted layers; expected an adapter that was trained in the "
            "alignment. Check `align.budget` and `align.rows`"
        )
    return found


def put(learner: Learner, products: Mapping[str, Product]) -> None:
    """Make adapters hold these products, by layer; the layers that are not named keep theirs.

    Where a product's rank is above that of the adapter, the adapter of every layer gets the highest rank of any: its
    factors are replaced by larger ones, of which what is not needed is zero. ``learner.trainables`` are then not the
    model's any more.

    Args:
        learner: the model, with plain LoRA adapters.
        products: what the adapters are to hold, scale included.
    """
    import torch

    from harness.models.adapter import layer_of, resize, scale_of, trained_pairs

    module = learner.module
    pairs = {layer_of(a): (a, b) for a, b in trained_pairs(module)}
    # Made before anything is written: a product may share its factors with the adapter.
    held = {}
    for name, (a, b) in pairs.items():
        if name in products:
            part = _at_most_full(products[name])
            held[name] = Product(part.b / scale_of(module, name), part.a.clone())
        else:
            held[name] = Product(module.get_parameter(b).detach().clone(), module.get_parameter(a).detach().clone())
    rank = max(len(product.a) for product in held.values())
    if rank > len(module.get_parameter(next(iter(pairs.values()))[0])):
        resize(module, rank)
    with torch.no_grad():
        for name, (name_a, name_b) in pairs.items():
            part = held[name]
            module.get_parameter(name_a).zero_()[: len(part.a)] = part.a
            module.get_parameter(name_b).zero_()[:, : len(part.a)] = part.b


def interpolate(learner: Learner, start: Gradient, factor: float) -> None:
    """Set each trained weight to ``w_0 + factor * (w - w_0)``, in place, where weights and no adapter are trained.

    Args:
        learner: the fine-tuned model, with the weights ``w``.
        start: the weights ``w_0`` before fine-tuning.
        factor: what is left of the change by fine-tuning.
    """
    import torch

    with torch.no_grad():
        for weight, first in zip(learner.trainables, start, strict=True):
            weight.copy_(first + factor * (weight - first))


def scaled(product: Product, factor: float) -> Product:
    """Return a multiple of a product."""
    return Product(factor * product.b, product.a)


def total(*products: Product) -> Product:
    """Return the sum of products, of the sum of their ranks."""
    import torch

    return Product(torch.cat([part.b for part in products], dim=1), torch.cat([part.a for part in products]))


def whole(matrix: Tensor) -> Product:
    """Return a matrix as a product of full rank: itself and an identity on the smaller side."""
    import torch

    rows, columns = matrix.shape
    identity = torch.eye(min(rows, columns), dtype=matrix.dtype, device=matrix.device)
    return Product(matrix, identity) if columns <= rows else Product(identity, matrix)


def _at_most_full(product: Product) -> Product:
    """Return a product, multiplied out if its rank is above that of the matrix."""
    rank, full = len(product.a), min(len(product.b), product.a.shape[1])
    return whole(product.b @ product.a) if rank > full else product


def inner(first: Product, second: Product) -> float:
    """Return the Frobenius inner product of two products, computed in float64."""
    left = first.b.double().T @ second.b.double()
    return float((left * (first.a.double() @ second.a.double().T)).sum())


def norm(product: Product) -> float:
    """Return the Frobenius norm of a product; free of the cancellation in ``inner(product, product)``."""
    import torch

    core_b, core_a = (torch.linalg.qr(factor.double()).R for factor in (product.b, product.a.T))
    return float((core_b @ core_a.T).norm())


def product_distance(module: Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return the Frobenius norm, over all layers, of the difference between what two adapters of a model add to it.

    Args:
        module: the model, with plain LoRA adapters.
        first: the factors of the one by parameter name; of any rank.
        second: those of the other.
    """
    from harness.models.adapter import layer_of, scale_of, trained_pairs

    squares = 0.0
    for a, b in trained_pairs(module):
        scale = scale_of(module, layer_of(a))
        difference = total(Product(scale * first[b], first[a]), Product(-scale * second[b], second[a]))
        squares += norm(difference) ** 2
    return math.sqrt(squares)


class Projector(NamedTuple):
    """A map onto the column space of an alignment change ``V``, as ``columns @ coordinates``.

    Attributes:
        columns: ``[out, k]``, spans the column space.
        mapping: ``[k, out]``: ``columns @ mapping`` is the map's matrix ``C``.
        rows: ``[k, in]``: ``V = columns @ rows``.
    """

    columns: Tensor
    mapping: Tensor
    rows: Tensor

    def of(self, product: Product) -> Product:
        """Return the projection of a product, of the product's rank."""
        return Product(self.columns @ (self.mapping @ product.b), product.a)


def published_projector(change: Product) -> Projector:
    """Return ``C = V V^T / ||V||_F`` of a change ``V``: symmetric, but not idempotent, so no projector."""
    gram = (change.a.double() @ change.a.double().T).to(change.a.dtype)
    return Projector(columns=change.b, mapping=gram @ change.b.T / norm(change), rows=change.a)


def orthogonal_projector(change: Product) -> Projector:
    """Return the orthogonal projector onto the column space of a change ``V``."""
    import torch

    directions, singular = main_directions(change)
    # Below this the directions of a float32 product are rounding errors.
    size = max(change.b.shape[0], change.a.shape[1])
    columns = directions[:, singular > singular[0] * size * torch.finfo(torch.float32).eps]
    return Projector(columns=columns, mapping=columns.T, rows=columns.T @ change.b @ change.a)


def cosine(projector: Projector, change: Product) -> float:
    """Return the cosine between a change and its projection, rounded to five digits; 0 if either is zero."""
    image = projector.of(change)
    lengths = norm(image) * norm(change)
    return round(inner(image, change) / lengths, DIGITS) if lengths else 0.0


PROJECTORS = {"published": published_projector, "orthogonal": orthogonal_projector}


def main_directions(product: Product) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors of a product as columns, and its singular values, in descending order."""
    import torch

    left, core_b = torch.linalg.qr(product.b.double())
    core_a = torch.linalg.qr(product.a.double().T).R
    directions, singular, _ = torch.linalg.svd(core_b @ core_a.T, full_matrices=False)
    return (left @ directions).to(product.b.dtype), singular
