"""SN-Tune and RSN-Tune: alignment of the neurons that matter for every harmful query, and of nothing else.

Yiran Zhao, Wenxuan Zhang, Yuxi Xie, Anirudh Goyal, Kenji Kawaguchi, Michael Qizhe Shieh: "Understanding and Enhancing
Safety Mechanisms of LLMs via Safety-Specific Neuron", ICLR 2025 (OpenReview yR47RmND1m).

Before the training, ``detection_rows`` harmful prompts go through the model. A neuron is a safety neuron if it is among
the important ones for every one of them (importances: ``harness.defenses.sn_tune.neurons``). Then the alignment trains
plainly, but the safety neurons alone: the optimizer neither updates nor decays anything else. RSN-Tune leaves out the
foundation neurons, those that matter for every one of ``foundation_rows`` general texts, so that a user's fine-tuning
moves fewer of what was tuned. The costs are those of plain training, after the detection: a forward pass for each query
and, for each, a softmax of its attention for each row of the query projection.

With an adapter, the rows of a matrix are those of its factor ``B`` (query, key, value, up), and the columns those of
``A`` (down): only the selected ones are trained, along with all of the other factor. Unselected columns of ``A`` start
at zero, so that the matrix changes in the selected columns alone. Other modules that have an adapter are frozen.

The paper takes neurons whose importance reaches a threshold, which it does not state (``threshold``); the code those
with the highest importances for a query, a fixed number in each layer (the defaults, as shares). Intersections shrink
with the number of queries: with none left, the run is refused.

Deviations from the authors' code: it scores other quantities than the paper (up: the sum of |up(x)|; value: that of the
output of attention; query and key: one score for both, from unscaled products), keeps at most 100 neurons of a matrix,
and tunes full matrices. The foundation texts are benign examples instead of Wikipedia, and the training rows are those
of the alignment (theirs: 50).

Fidelity: equations second-hand. Neither the paper nor the authors' repository could be read; equations and defaults are
those that a fork of it and the port in TamperBench (criticalml-uw/TamperBench, rsn_tune/detection.py) document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Role
from harness.engine.checks import counts, positive, shares
from harness.errors import ModelError, Problem
from harness.mechanisms.masked_parameters import MaskedParameters
from harness.protocols import DataRequirement

if TYPE_CHECKING:
    from torch import Tensor

    from harness.defenses.sn_tune.neurons import Key, Neurons
    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class SNTune:
    """Settings of SN-Tune, and of RSN-Tune with ``foundation_rows``.

    Attributes:
        detection_rows: number of harmful prompts that select the safety neurons.
        detection_batch_size: of them at once, of which ``detection_rows`` is a multiple.
        foundation_rows: number of benign examples that select the foundation neurons; null leaves none out.
        attention_share: fraction of the rows of a projection of attention that count as important for a query.
        mlp_share: fraction of the neurons of a feed-forward block that count as important for a query.
        threshold: the least importance of an important neuron, instead of the shares.
    """

    name: ClassVar[str] = "sn_tune"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    base_weights: ClassVar[str] = "weighs neurons by the norms of their columns"

    detection_rows: int = 200
    detection_batch_size: int = 10
    foundation_rows: int | None = None
    attention_share: float = 1000 / 4096
    mlp_share: float = 2000 / 11008
    threshold: float | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful examples, for their prompts, and benign ones."""
        size = self.detection_batch_size
        harmful = DataRequirement(role=Role.HARMFUL, rows=self.detection_rows, batch_size=size)
        if self.foundation_rows is None:
            return (harmful,)
        return (harmful, DataRequirement(role=Role.BENIGN, rows=self.foundation_rows, batch_size=size))

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [
            *counts(self, "detection_rows", "detection_batch_size", "foundation_rows"),
            *shares(self, "attention_share", "mlp_share"),
            *positive(self, "threshold"),
        ]
        if found:
            return found
        size = self.detection_batch_size
        return [
            Problem(name, f"{rows} is not a multiple of `detection_batch_size` {size}; expected one")
            for name, rows in (("detection_rows", self.detection_rows), ("foundation_rows", self.foundation_rows))
            if rows is not None and rows % size
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SNTuneStep:  # noqa: ARG002
        """Start a run: detect the neurons.

        Raises:
            ModelError: what is trained is not plain LoRA, the projections cannot be found, none of those with neurons
                is adapted, or no neuron is left.
        """
        return SNTuneStep(self, learner, batches)


@final
class SNTuneStep:
    """One run of SN-Tune; its state is the neurons.

    Detected again in micro-batches of another size, neurons near the limit could be others.
    """

    def __init__(self, settings: SNTune, learner: Learner, batches: BatchProvider) -> None:
        """Detect the neurons.

        Raises:
            ModelError: what is trained is not plain LoRA, the projections cannot be found, none of those with neurons
                is adapted, or no neuron is left.
        """
        from harness.defenses.sn_tune.neurons import Neurons

        self._settings = settings
        self._learner = learner
        neurons = Neurons(learner)
        masks = _always(neurons, batches, Role.HARMFUL, settings, settings.detection_rows)
        if settings.foundation_rows is not None:
            common = _always(neurons, batches, Role.BENIGN, settings, settings.foundation_rows)
            masks = {key: mask & ~common[key] for key, mask in masks.items()}
        self._trained, self._initial, self._tuned = _factors(learner, masks)
        self._masked = MaskedParameters(learner, self._trained, self._initial)

    def initial(self) -> Gradient:
        """Return the parameters with zeros in the columns of ``A`` that are not trained."""
        return self._initial

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the tuned neurons; report the loss and their share of the neurons of tuned matrices."""
        loss, gradient = self._learner.gradient(batch)
        self._learner.set_gradient(self._masked.gradient(gradient))
        return {"loss": loss, "tuned_share": self._tuned}

    def after_step(self) -> None:
        """Take back what weight decay did to other neurons."""
        self._masked.restore()

    def state_dict(self) -> dict[str, Any]:
        """Return the masks of the trained neurons, the initial parameters, and the share of neurons."""
        return {"trained": self._trained, "initial": self._initial, "tuned": self._tuned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._trained, self._initial, self._tuned = state["trained"], state["initial"], state["tuned"]
        self._masked = MaskedParameters(self._learner, self._trained, self._initial)


def _always(neurons: Neurons, batches: BatchProvider, role: Role, settings: SNTune, rows: int) -> dict[Key, Tensor]:
    """Return the masks of the neurons that are important for every query of a role."""
    import torch

    found: dict[Key, Tensor] = {}
    queries: Tensor | None = None
    for _ in range(rows // settings.detection_batch_size):
        counted, asked = neurons.counts(
            batches.next(role),
            whole=role is Role.BENIGN,
            threshold=settings.threshold,
            attention_share=settings.attention_share,
            mlp_share=settings.mlp_share,
        )
        found = {key: found[key] + count if key in found else count for key, count in counted.items()}
        queries = asked if queries is None else queries + asked
    assert queries is not None, "there is at least one batch"
    return {key: torch.eq(count, queries) for key, count in found.items()}


def _factors(learner: Learner, masks: Mapping[Key, Tensor]) -> tuple[list[Tensor | None], Gradient, Tensor]:
    """Return the masks of the trainable parameters, their initial values, and the share of trained neurons.

    Raises:
        ModelError: what is trained is not plain LoRA, none of it has neurons, or no neuron is left.
    """
    import torch

    from harness.defenses.sn_tune.neurons import ATTENTION, DOWN, UP
    from harness.models.adapter import layer_of, trained_pairs
    from harness.models.decoder import layers

    numbers = {
        id(parameter): number for number, layer in enumerate(layers(learner.module)) for parameter in layer.parameters()
    }
    places = {id(parameter): place for place, parameter in enumerate(learner.trainables)}
    initial = [parameter.detach().clone() for parameter in learner.trainables]
    trained: list[Tensor | None] = [None] * len(initial)
    chosen = []
    for name_a, name_b in trained_pairs(learner.module):
        a, b = learner.module.get_parameter(name_a), learner.module.get_parameter(name_b)
        projection = layer_of(name_a).rpartition(".")[2]
        if id(a) not in numbers or projection not in (*ATTENTION, UP, DOWN):
            continue
        mask = masks[numbers[id(a)], UP if projection == DOWN else projection]
        chosen.append(mask)
        place_a, place_b = places[id(a)], places[id(b)]
        everything = torch.ones((), dtype=torch.bool, device=mask.device)
        if projection == DOWN:
            trained[place_a], trained[place_b] = mask[None, :], everything
            initial[place_a] = initial[place_a] * mask[None, :]
        else:
            trained[place_a], trained[place_b] = everything, mask[:, None]
    if not chosen:
        raise ModelError(
            f"`sn_tune` tunes neurons of {', '.join((*ATTENTION, UP, DOWN))}, of which none has an adapter; expected "
            "some of them in `align.adapter.targets`"
        )
    share = torch.cat(chosen).float().mean()
    if bool(torch.cat([~mask for mask in chosen]).all()):
        raise ModelError(
            "`sn_tune` found no neuron that is important for every query; expected some. Raise `attention_share` and "
            "`mlp_share`, lower `threshold`, or use fewer `detection_rows`"
        )
    return trained, initial, share
