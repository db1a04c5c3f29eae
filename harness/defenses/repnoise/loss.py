"""RepNoise's pressure on harmful answers: their representations towards noise, their loss upwards in every layer.

Domenic Rosati et al.: "Representation Noising: A Defence Mechanism Against Harmful Finetuning", NeurIPS 2024 (arXiv
2405.14577). On a harmful batch ``z``, with ``m`` the positions that set it apart, ``H_l`` the feed-forward outputs of
the ``L`` layers, ``h_0 .. h_L`` the hidden states, ``Z_l`` standard normals, and ``CE_m(h_j)`` the cross-entropy of
``z`` at ``m`` when ``h_j`` is put through the final normalisation and the language-model head:

``beta * 1/L * sum_l MMD^2(H_l * m, Z_l * m) - alpha * log(1 + J)``, ``J = 1/(L+1) * sum_j CE_m(h_j)``.

A row of ``H_l * m`` is one member of the sample, over all its positions and features.

``J`` and MMD^2 are of the whole batch, and so a batch in pieces is swept twice: the first sweep finds both and the
gradient of MMD^2 in the features, which are held of all its rows; the second one takes these on to the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.corpora.encode import IGNORED
from harness.defenses.repnoise.mmd import Gathering, squared_mmd
from harness.mechanisms.row_noise import gaussian, real_positions
from harness.models.decoder import final_norm, kept_input, kept_outputs, layers, mlp_blocks
from harness.protocols import Learner, Piece
from harness.training.distributed import all_reduce_sum
from harness.training.learner import mean_loss
from harness.training.pieces import swept


class Repelled(NamedTuple):
    """The pressure at the present weights.

    Attributes:
        gradient: of the sum of both terms.
        metrics: ``harmful_loss`` CE_m(h_L); ``harmful_layer_loss`` J; ``noise_distance`` the mean of MMD^2.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


class Looked(NamedTuple):
    """What a pass tells of a piece.

    Attributes:
        final: what it adds to CE_m(h_L).
        mean: what it adds to J.
        features: ``H_l * m`` of each layer, ``[rows, time, hidden]``, float32.
    """

    final: Tensor
    mean: Tensor
    features: list[Tensor]


class Repulsion:
    """Measures the pressure on harmful batches.

    Args:
        learner: the model.
        alpha: weight of the ascent.
        beta: weight of the noise.

    Raises:
        ModelError: the layers, their feed-forward blocks or the final normalisation cannot be found.
    """

    def __init__(self, learner: Learner, *, alpha: float, beta: float) -> None:
        """Find the parts of the model."""
        self._learner = learner
        self._alpha = alpha
        self._beta = beta
        self._layers = layers(learner.module)
        self._mlps = dict(enumerate(mlp_blocks(learner.module)))
        self._norm = final_norm(learner.module)
        self._head = learner.module.get_output_embeddings()  # type: ignore[operator]

    def measure(self, harmful: Mapping[str, Tensor], positions: Tensor, *, seed: int) -> Repelled:
        """Take one pass, or two over the pieces of a batch that is cut; no hook remains.

        Args:
            harmful: this process's rows.
            positions: ``m``, ``[batch, time]``; a row without any is left out.
            seed: of the noise of this batch.
        """
        told = {**harmful, "labels": harmful["input_ids"].masked_fill(~positions, IGNORED)}
        pieces = self._learner.pieces(told)
        seen, look = swept(pieces, lambda piece: self._look(piece, piece.of(positions)))
        total = torch.stack([each.final.detach() for each in seen]).sum()
        whole = torch.stack([each.mean.detach() for each in seen]).sum()
        all_reduce_sum(total, whole)
        distance, pulls = self._distance(pieces, seen, positions, seed)
        # Their features are twice as large as what is left of them; the second sweep has its own.
        del seen

        def share(piece: Piece) -> tuple[Tensor]:
            looked = look(piece)
            # The derivative of log(1 + J) in this piece's share of J, and of the distance in its features.
            ascent = looked.mean / (1 + whole)
            nearing = [(piece.of(pull) * own).sum() for pull, own in zip(pulls, looked.features, strict=True)]
            return (torch.stack(nearing).sum() - self._alpha * ascent,)

        _, gradient = self._learner.accumulate(pieces, share)
        return Repelled(gradient, {"harmful_loss": total, "harmful_layer_loss": whole, "noise_distance": distance})

    def _look(self, piece: Piece, positions: Tensor) -> Looked:
        below = dict(enumerate(self._layers[:-1]))
        with kept_outputs(self._mlps) as features, kept_outputs(below) as left, kept_input(self._layers[0]) as entered:
            prediction = self._learner.predict(piece)
        final = mean_loss(prediction)
        # The state of the last layer is what the model's own logits are made from.
        states = [*entered, *(left[place] for place in below)]
        sums = [self._loss_of(state[:, :-1][positions[:, 1:]], prediction.targets) for state in states]
        mean = (final + torch.stack(sums).sum() / prediction.positions.clamp(min=1)) / (len(sums) + 1)
        return Looked(final, mean, [features[place].float() * positions[:, :, None] for place in features])

    def _loss_of(self, states: Tensor, targets: Tensor) -> Tensor:
        logits: Tensor = self._head(self._norm(states))
        return cross_entropy(logits.float(), targets, reduction="sum")

    def _distance(
        self, pieces: Sequence[Piece], seen: Sequence[Looked], positions: Tensor, seed: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mean of MMD^2 over the layers and the rows of all processes, equal on all of them.

        With it comes the gradient of ``beta`` times it in the features ``H_l * m`` of the share, ``[batch, time,
        hidden]`` for each layer.
        """
        rows = positions.any(dim=1)
        gathering = Gathering(int(rows.sum()), positions.shape[1], positions.device)
        width = seen[0].features[0].shape[-1]
        noise = gaussian(positions, layers=len(self._mlps), width=width, seed=seed)
        features = [torch.zeros_like(noise[place]) for place in range(len(self._mlps))]
        for piece, looked in zip(pieces, seen, strict=True):
            for whole, part in zip(features, looked.features, strict=True):
                own = piece.of(whole)
                own.copy_(part.detach())
        distances = [
            squared_mmd(gathering.together(ours.requires_grad_()[rows]), gathering.together(other[rows]))
            for ours, other in zip(features, noise, strict=True)
        ]
        distance = torch.stack(distances).mean()
        return distance.detach(), list(torch.autograd.grad(self._beta * distance, features))


def apart(harmful: Mapping[str, Tensor], refusal: Mapping[str, Tensor]) -> Tensor:
    """Return where the rows of one batch have a token that the same row of the other does not have, ``[batch, time]``.

    Args:
        harmful: the batch that is looked at; rows for which the other has none differ nowhere.
        refusal: the batch that it is compared with; it may be longer, shorter, or have fewer rows.
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
