"""RepNoise's loss on harmful answers: noise their representations, and raise the loss of every layer's logit lens.

Domenic Rosati et al.: "Representation Noising: A Defence Mechanism Against Harmful Finetuning", NeurIPS 2024 (arXiv
2405.14577). On a harmful batch ``z``, with ``m`` the positions at which it differs from the refusals, ``H_l`` the
feed-forward outputs of the ``L`` layers, ``h_0 .. h_L`` the hidden states, ``Z_l`` standard normals, and ``CE_m(h_j)``
the cross-entropy of ``z`` at ``m`` with the logits of ``h_j`` through the final norm and the language-model head:

``beta * 1/L * sum_l MMD^2(H_l * m, Z_l * m) - alpha * log(1 + J)``, ``J = 1/(L+1) * sum_j CE_m(h_j)``.

One example of ``H_l * m``, flattened over positions and features, is one sample of the MMD.

The authors' code, ``published`` here, computes another ``CE_m`` and ``J``: the logits are multiplied by ``m`` of their
own position, so that a target in ``m`` whose previous token is not in ``m`` adds the constant ``log V``, with ``V`` the
size of the vocabulary; and ``J`` has one more term, the last hidden state normalized a second time, while it is still
divided by ``L + 1``.

``J`` and MMD^2 depend on the whole batch, so a batch split into micro-batches takes two passes: the first computes both
and the gradient of MMD^2 with respect to the features, which are kept for the whole batch; the second backpropagates
it to the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.corpora.encode import IGNORED
from harness.corpora.transfer import on_device
from harness.defenses.repnoise.mmd import DifferentiableGather, squared_mmd
from harness.mechanisms.row_noise import gaussian, real_positions
from harness.models.decoder import final_norm, kept_input, kept_outputs, layers, mlp_blocks
from harness.protocols import Learner, Piece
from harness.training.distributed import all_reduce_sum
from harness.training.pieces import first_pass


class LossGradient(NamedTuple):
    """Gradient and metrics at the current weights.

    Attributes:
        gradient: of the sum of both terms.
        metrics: ``harmful_loss`` CE_m(h_L); ``harmful_layer_loss`` J; ``noise_distance`` the mean of MMD^2.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class ForwardResult(NamedTuple):
    """Result of a forward pass on a micro-batch.

    Attributes:
        final: its contribution to CE_m(h_L).
        mean: its contribution to J.
        features: ``H_l * m`` of each layer, ``[batch, time, hidden]``, float32.
    """

    final: Tensor
    mean: Tensor
    features: list[Tensor]


class HarmfulLoss:
    """Computes the gradient of the loss on harmful batches.

    Args:
        learner: the model.
        alpha: weight of the ascent term.
        beta: weight of the noise term.
        published: compute ``CE_m`` and ``J`` as the authors' code does.

    Raises:
        ModelError: the layers, their feed-forward blocks or the final norm cannot be found.
    """

    def __init__(self, learner: Learner, *, alpha: float, beta: float, published: bool = False) -> None:
        """Find the modules of the model."""
        self._learner = learner
        self._published = published
        self._alpha = alpha
        self._beta = beta
        self._layers = layers(learner.module)
        self._mlps = dict(enumerate(mlp_blocks(learner.module)))
        self._norm = final_norm(learner.module)
        self._head = learner.module.get_output_embeddings()  # type: ignore[operator]

    def gradient(self, harmful: Mapping[str, Tensor], positions: Tensor, *, seed: int) -> LossGradient:
        """Return the gradient, after one pass over an unsplit batch or two passes over micro-batches.

        Args:
            harmful: this process's share of the batch.
            positions: ``m``, ``[batch, time]``, on the CPU; an example without any is excluded.
            seed: of the noise for this batch.
        """
        pieces = self._learner.pieces(_supervised(harmful, positions))
        results, forward = first_pass(pieces, lambda piece: self._forward(piece, piece.of(positions)))
        final_loss = torch.stack([result.final.detach() for result in results]).sum()
        mean_loss_of_layers = torch.stack([result.mean.detach() for result in results]).sum()
        all_reduce_sum(final_loss, mean_loss_of_layers)
        distance, feature_gradients = self._distance(pieces, results, positions, seed)
        # Frees the features of the first pass, twice the size of their gradients; the second pass computes its own.
        del results

        def share(piece: Piece) -> tuple[Tensor]:
            result = forward(piece)
            # Chain rule: d log(1 + J) = dJ / (1 + J), and the gradient of MMD^2 with respect to the features.
            ascent = result.mean / (1 + mean_loss_of_layers)
            noising = [
                (piece.of(gradient) * feature).sum()
                for gradient, feature in zip(feature_gradients, result.features, strict=True)
            ]
            return (torch.stack(noising).sum() - self._alpha * ascent,)

        _, gradient = self._learner.accumulate(pieces, share)
        metrics: dict[str, Tensor | float] = {
            "harmful_loss": final_loss,
            "harmful_layer_loss": mean_loss_of_layers,
            "noise_distance": distance,
        }
        return LossGradient(gradient, metrics)

    def _forward(self, piece: Piece, positions: Tensor) -> ForwardResult:
        below = dict(enumerate(self._layers[:-1]))
        last = {0: self._norm} if self._published else {}
        with (
            kept_outputs(self._mlps) as features,
            kept_outputs(below) as hidden,
            kept_outputs(last) as normalized,
            kept_input(self._layers[0]) as first,
        ):
            prediction = self._learner.predict(piece)
        counted = _previous(piece, positions) if self._published else None
        # Without `published`, the last hidden state is not in the list: the model's own logits give its loss.
        states = [*first, *(hidden[layer] for layer in below), *normalized.values()]
        selected = [state.flatten(0, 1).index_select(0, piece.supervised) for state in states]
        sums = [_total(self._head(self._norm(state)), piece.targets, counted) for state in selected]
        count = prediction.positions.clamp(min=1)
        final = _total(prediction.logits, piece.targets, counted) / count
        mean = (final + torch.stack(sums).sum() / count) / (len(self._layers) + 1)
        return ForwardResult(final, mean, [features[layer].float() * positions[:, :, None] for layer in features])

    def _distance(
        self, pieces: Sequence[Piece], results: Sequence[ForwardResult], positions: Tensor, seed: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mean of MMD^2 over the layers, on the examples of all processes, and its gradient.

        The gradient is that of ``beta`` times the mean with respect to this process's features ``H_l * m``,
        ``[batch, time, hidden]`` for each layer.
        """
        device, width = results[0].features[0].device, results[0].features[0].shape[-1]
        rows = positions.any(dim=1).nonzero().squeeze(1)
        gather = DifferentiableGather(len(rows), positions.shape[1], device)
        rows = on_device(rows, device)
        noise = gaussian(positions, layers=len(self._mlps), width=width, seed=seed, device=device)
        features = [torch.zeros_like(noise[layer]) for layer in range(len(self._mlps))]
        for piece, result in zip(pieces, results, strict=True):
            for whole, part in zip(features, result.features, strict=True):
                piece.put(whole, part.detach())
        distances = [
            squared_mmd(gather(own.requires_grad_()[rows]), gather(other[rows]))
            for own, other in zip(features, noise, strict=True)
        ]
        distance = torch.stack(distances).mean()
        return distance.detach(), list(torch.autograd.grad(self._beta * distance, features))


def differing_loss(learner: Learner, batch: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> LossGradient:
    """Return the loss of the authors' code on a batch, ``CE_m`` where it differs from another one, and its gradient.

    It covers prompts as well as answers.
    """
    positions = differing_positions(batch, other)

    def share(piece: Piece) -> tuple[Tensor]:
        prediction = learner.predict(piece)
        counted = _previous(piece, piece.of(positions))
        return (_total(prediction.logits, piece.targets, counted) / prediction.positions.clamp(min=1),)

    (loss,), gradient = learner.accumulate(learner.pieces(_supervised(batch, positions)), share)
    return LossGradient(gradient, {"loss": loss})


def _supervised(batch: Mapping[str, Tensor], positions: Tensor) -> Mapping[str, Tensor]:
    """Return a batch whose labels are the real tokens at ``positions``."""
    real = positions & batch["attention_mask"].bool()
    return {**batch, "labels": batch["input_ids"].masked_fill(~real, IGNORED)}


def _previous(piece: Piece, positions: Tensor) -> Tensor:
    """Return, for each supervised position of a micro-batch, whether it is itself in ``positions``, ``[n]``.

    Args:
        piece: the micro-batch.
        positions: its part of the mask, ``[batch, time]``.
    """
    return positions.flatten().index_select(0, piece.supervised)


def _total(logits: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
    """Return the sum of the cross-entropy; a position that is not counted adds that of a uniform distribution."""
    if counted is None:
        return cross_entropy(logits.float(), targets, reduction="sum")
    losses = cross_entropy(logits.float(), targets, reduction="none")
    return losses.where(counted, math.log(logits.shape[-1])).sum()


def differing_positions(harmful: Mapping[str, Tensor], refusal: Mapping[str, Tensor]) -> Tensor:
    """Return the mask of positions at which a harmful example differs from its refusal, ``[batch, time]``.

    Args:
        harmful: the harmful batch; the mask is empty for examples without a refusal.
        refusal: the refusals of the same prompts; may be longer, shorter, or have fewer examples.
    """
    ids = harmful["input_ids"]
    real = real_positions(refusal)
    rows, time = int(real.any(dim=1).sum()), min(ids.shape[1], real.shape[1])
    rows = min(rows, len(ids))
    other = torch.full_like(ids, -1)
    other[:rows, :time] = refusal["input_ids"].masked_fill(~real, -1)[:rows, :time]
    differs = (ids != other) & harmful["attention_mask"].bool()
    differs[rows:] = False
    return differs
