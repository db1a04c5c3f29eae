"""LARF (layer-aware representation filtering): the examples most like harmful ones are dropped before training.

Hao Li et al.: "Layer-Aware Representation Filtering: Purifying Finetuning Data to Preserve LLM Safety Alignment", EMNLP
2025 (arXiv 2507.18631).

With ``h(z)`` the output of one layer of the aligned model at the last token of a prompt with its answer ``z``, and
references of one harmful prompt each, answered harmfully (``u_j``) and with a refusal (``s_j``), an example ``z`` has

    score(z) = mean of the ``top`` largest of  cos(h(z), h(u_j)) - cos(h(z), h(s_j))  over j

and the ``share`` of the examples with the highest scores is dropped. Training is plain, on fewer examples and so in
fewer steps. One forward pass on all examples and references; every process computes all of them. The manifest of the
fine-tuning has the counts by kind of example (``chosen``): the recall of poison, which is not yet safety.

Deviations from the authors' code: they rank a benign data set and compare training on its top and bottom 1,000, so the
share that is dropped is ours. The references come from the corpus, 100 pairs as theirs; with ``top`` equal to their
number, the default as in their code, the pairing does not matter. Their layer, 10 of 32 for Llama 3.1, was found by
scaling layers and counting refusals, which is not implemented; the default is that share of the depth.

Fidelity: hand-computed only. The score and its defaults are those of the authors' code (commit 596693d); scores and
dropped examples are computed by hand in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import IGNORED
from harness.corpora.examples import Role
from harness.engine.checks import below_one, counts
from harness.errors import ModelError, Problem
from harness.protocols import Chosen, DataRequirement
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from torch import Tensor

    from harness.corpora.encode import Encoded
    from harness.protocols import Batch, BatchProvider, GivenRows, Learner

_PUBLISHED_LAYER = 10 / 32
"""The authors' layer, as a share of the depth."""


@final
@dataclass(frozen=True, kw_only=True)
class LARF:
    """Settings of LARF.

    Attributes:
        share: fraction of the examples that is dropped, rounded down.
        layer: the layer whose output is compared, counted from 1; None is 10 of 32 as a share of the depth.
        references: number of reference pairs.
        top: number of largest differences that are averaged; None is all.
    """

    name: ClassVar[str] = "larf"
    version: ClassVar[int] = 1
    gradients_per_step: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    share: float = 0.1
    layer: int | None = None
    references: int = 100
    top: int | None = None

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful prompts with both answers."""
        count = self.references
        return (DataRequirement(role=Role.HARMFUL, rows=count, batch_size=count, paired=True),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*below_one(self, "share"), *counts(self, "layer", "references", "top")]
        if not found and self.top is not None and self.top > self.references:
            found.append(Problem("top", f"{self.top} of {self.references} differences; expected at most `references`"))
        return found

    def choose(self, learner: Learner, given: GivenRows, batches: BatchProvider) -> Chosen:  # noqa: ARG002
        """Return the examples without those of the highest scores.

        Raises:
            ModelError: the model has fewer layers than ``layer``.
        """
        states = _States(learner, given, self.layer)
        differences = states.cosines(given.own, given.of(Role.HARMFUL)) - states.cosines(
            given.own, given.partners(Role.HARMFUL)
        )
        most = min(self.top or differences.shape[1], differences.shape[1])
        scores: list[float] = differences.topk(most, dim=1).values.mean(dim=1).tolist()
        dropped = math.floor(Fraction(str(self.share)) * len(scores))
        worst = set(sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:dropped])
        kept = [(place, row) for place, row in enumerate(given.own) if place not in worst]
        lowest = min((scores[place] for place in worst), default=None)
        return Chosen(kept, {"layer": states.layer, **({} if lowest is None else {"lowest_dropped_score": lowest})})

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)


@final
class _States:
    """The hidden states of examples at their last token, in one layer of the model as it is."""

    def __init__(self, learner: Learner, given: GivenRows, layer: int | None) -> None:
        from harness.models.decoder import layers

        found = layers(learner.module)
        self.layer = layer or max(1, round(_PUBLISHED_LAYER * len(found)))
        if self.layer > len(found):
            raise ModelError(
                f"the model has {len(found)} layers, so there is no layer {self.layer}; expected at most {len(found)}. "
                "Set `defense.finetune.layer`"
            )
        self._block = {0: found[self.layer - 1]}
        self._learner = learner
        self._given = given

    def cosines(self, rows: Sequence[Encoded], others: Sequence[Encoded]) -> Tensor:
        """Return the cosines of the states of all pairs, ``[rows, others]``."""
        return self._units(rows) @ self._units(others).T

    def _units(self, rows: Sequence[Encoded]) -> Tensor:
        import torch

        states = torch.cat([self._of(batch) for batch in self._given.batches(rows)])
        return torch.nn.functional.normalize(states, dim=1)

    def _of(self, batch: Batch) -> Tensor:
        """Return the states of a batch, ``[rows, features]``, on the CPU."""
        import torch

        from harness.models.decoder import kept_outputs

        module = self._learner.module
        last = [max(place for place, label in enumerate(row) if label != IGNORED) for row in batch["labels"].tolist()]
        found: dict[int, Tensor] = {}
        training = module.training
        module.eval()
        try:
            with torch.no_grad(), kept_outputs(self._block) as kept:
                for piece in self._learner.pieces(batch):
                    self._learner.predict(piece)
                    for index, row in enumerate(piece.rows):
                        found[row] = kept[0][index, last[row]].float().cpu()
        finally:
            module.train(training)
        return torch.stack([found[row] for row in range(len(last))])
