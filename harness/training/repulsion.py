"""RepNoise's pressure on harmful answers: their representations towards noise, their loss upwards in every layer.

Domenic Rosati et al.: "Representation Noising: A Defence Mechanism Against Harmful Finetuning", NeurIPS 2024 (arXiv
2405.14577). On a harmful batch ``z``, with ``m`` the positions that set it apart, ``H_l`` the feed-forward outputs of
the ``L`` layers, ``h_0 .. h_L`` the hidden states, ``Z_l`` standard normals, and ``CE_m(h_j)`` the cross-entropy of
``z`` at ``m`` when ``h_j`` is put through the final normalisation and the language-model head:

``beta * 1/L * sum_l MMD^2(H_l * m, Z_l * m) - alpha * log(1 + J)``, ``J = 1/(L+1) * sum_j CE_m(h_j)``.

A row of ``H_l * m`` is one member of the sample, over all its positions and features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.corpora.encode import IGNORED
from harness.protocols import Learner
from harness.training.decoder import final_norm, kept_input, kept_outputs, layers, mlp_blocks
from harness.training.discrepancy import Gathering, squared_mmd
from harness.training.learner import mean_loss
from harness.training.noise import gaussian, real_positions
from harness.training.processes import add_up


class Repelled(NamedTuple):
    """The pressure at the present weights.

    Attributes:
        gradient: of the sum of both terms.
        metrics: ``harmful_loss`` CE_m(h_L); ``harmful_layer_loss`` J; ``noise_distance`` the mean of MMD^2.
    """

    gradient: list[Tensor]
    metrics: dict[str, Tensor | float]


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
        """Take one pass; no hook remains.

        Args:
            harmful: this process's rows.
            positions: ``m``, ``[batch, time]``; a row without any is left out.
            seed: of the noise of this batch.
        """
        told = {**harmful, "labels": harmful["input_ids"].masked_fill(~positions, IGNORED)}
        below = dict(enumerate(self._layers[:-1]))
        with kept_outputs(self._mlps) as features, kept_outputs(below) as left, kept_input(self._layers[0]) as entered:
            prediction = self._learner.predict(told)
        final = mean_loss(prediction)
        # The state of the last layer is what the model's own logits are made from.
        states = [*entered, *(left[place] for place in below)]
        sums = [self._loss_of(state[:, :-1][positions[:, 1:]], prediction.targets) for state in states]
        mean = (final + torch.stack(sums).sum() / prediction.positions.clamp(min=1)) / (len(sums) + 1)
        distance = self._distance(features, positions, seed)
        total, whole = final.detach().clone(), mean.detach().clone()
        add_up(total, whole)
        # The derivative of log(1 + J) in this process's share of J.
        ascent = mean / (1 + whole)
        _, gradient = self._learner.pull_back(self._beta * distance - self._alpha * ascent)
        return Repelled(
            gradient, {"harmful_loss": total, "harmful_layer_loss": whole, "noise_distance": distance.detach()}
        )

    def _loss_of(self, states: Tensor, targets: Tensor) -> Tensor:
        logits: Tensor = self._head(self._norm(states))
        return cross_entropy(logits.float(), targets, reduction="sum")

    def _distance(self, features: Mapping[int, Tensor], positions: Tensor, seed: int) -> Tensor:
        """Return the mean of MMD^2 over the layers and the rows of all processes; equal on all of them."""
        rows = positions.any(dim=1)
        gathering = Gathering(int(rows.sum()), positions.shape[1], positions.device)
        noise = gaussian(positions, layers=len(features), width=features[0].shape[-1], seed=seed)
        distances = [
            squared_mmd(
                gathering.together((features[place].float() * positions[:, :, None])[rows]),
                gathering.together(noise[place][rows]),
            )
            for place in features
        ]
        return torch.stack(distances).mean()


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
