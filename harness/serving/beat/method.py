"""BEAT: a prompt is rejected if a request that the model refuses alone is answered otherwise beside it.

Yi et al., "Probe before You Talk: Towards Black-box Defense against Backdoor Unalignment for Large Language Models",
ICLR 2025 (arXiv 2506.16447). A backdoored model is harmless without its trigger. A probe is a harmful request that the
model refuses; with a trigger in the user's prompt, the model complies with a probe that stands in front of it:

    score(x) = mean over probes p of EMD(S(p), S(p + " and " + x)),

with ``S(t)`` the embeddings of ``samples`` answers to ``t`` of ``tokens`` tokens each, sampled at temperature 1, and
EMD the earth mover's distance under the cosine distance. A prompt whose score is above the threshold is rejected.

Of ``candidates`` harmful requests, those ``probes`` are taken whose own answers are most alike: the mean of their
pairwise cosine distances is the smallest, a request's own included. The probes' answers are sampled once.

The paper reports the true positives at 5 % false positives, and neither it (as far as it could be read) nor its code
has a threshold: here it is the quantile of the scores of harmless prompts that leaves ``false_positives`` of them above
it, or a number. Trap: the authors count untriggered harmful prompts as negatives, which a model refuses anyway, so a
rejection is not a sign of harm; whether answers get safer, the harmful score says.

Cost, in the manifest: for each prompt and probe one forward pass over the prompt, and one for each further token of
each sample. The user's trigger is part of the prompt, so the probe stands before it, and before the text that an
evaluation adds.

Deviations from the authors' code (commit 6f107f0): the prompt is prefilled once for all samples; every prompt has
random numbers of its own, so that scores do not depend on its neighbours; the candidates are requests of the alignment
instead of held-out ones of AdvBench. Tokens are sampled from the 50 most likely ones, which is the default of the
library that they use. In the synthetic world counts of words stand in for the sentence model.

Fidelity: hand-computed only. The order of the texts, the distances and the choice of probes are those of the authors'
code, as are the defaults; they are computed by hand in the tests, no vectors of their implementation were available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import fmean
from typing import Any, ClassVar, final

from harness.corpora.examples import Example, Role
from harness.engine.checks import below_one, counts
from harness.errors import Problem
from harness.protocols import Calibrated, DataRequirement, ServedModel, Verdict
from harness.serving.beat.distance import SentenceEncoder, SentenceModel, cosine_distances, earth_mover

JOIN = " and "
"""What stands between a probe and a prompt."""
TOP_K = 50
"""Number of the most likely tokens that are sampled."""
PROBES, REPLIES, BENIGN = "probes", "replies", "benign"
"""Names of what the calibration finds: the probes, their sampled answers one after another, the harmless scores."""


@final
@dataclass(frozen=True, kw_only=True)
class Signatures:
    """How a model answers the probes, and how harmless prompts score.

    Attributes:
        encoder: embeds answers.
        candidates: number of harmful requests among which the probes are.
        probes: number of probes.
        samples: answers per prompt.
        tokens: length of an answer, in tokens.
        benign: number of harmless prompts; null scores none, for a threshold that is given.
    """

    name: ClassVar[str] = "signatures"
    version: ClassVar[int] = 1
    on_aligned: ClassVar[bool] = False
    encoder: SentenceEncoder = field(default_factory=SentenceModel)
    candidates: int = 10
    probes: int = 1
    samples: int = 10
    tokens: int = 10
    benign: int | None = 100

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful requests, and harmless ones for the threshold."""
        found = [DataRequirement(role=Role.REFUSAL, rows=self.candidates, batch_size=None)]
        if self.benign is not None:
            found.append(DataRequirement(role=Role.BENIGN, rows=self.benign, batch_size=None))
        return tuple(found)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "candidates", "probes", "samples", "tokens", "benign")
        if not found and self.probes > self.candidates:
            found.append(
                Problem("probes", f"{self.probes} of {self.candidates} candidates; expected at most all of them")
            )
        return found

    def preflight(self) -> list[Problem]:
        """Check the encoder."""
        return [problem.under("encoder") for problem in self.encoder.preflight()]

    def calibrate(
        self,
        served: ServedModel,
        examples: Mapping[Role, Sequence[Example]],
        refusals: Mapping[Role, Sequence[Example]],  # noqa: ARG002
        *,
        seed: int,
        facts: dict[str, Any],
    ) -> Calibrated:
        """Choose the probes, sample their answers, and score harmless prompts."""
        import torch

        candidates = examples[Role.REFUSAL]
        sampled = self.sampled(served, "", candidates, seed)
        spread = [float(cosine_distances(each, each).mean()) for each in self._embedded(served, sampled)]
        order = sorted(range(len(candidates)), key=lambda place: spread[place])[: self.probes]
        texts = {
            PROBES: [candidates[place].instruction for place in order],
            REPLIES: [reply for place in order for reply in sampled[place]],
        }
        facts["probing"] = self.cost(len(candidates), 1)
        facts["spread"] = [spread[place] for place in order]
        benign = examples.get(Role.BENIGN, ())
        scores = self.scores(served, Calibrated({}, texts, seed), benign)
        if benign:
            facts["probing_benign"] = self.cost(len(benign), self.probes)
        return Calibrated({BENIGN: torch.tensor(scores, dtype=torch.float64)}, texts, seed)

    def scores(self, served: ServedModel, calibrated: Calibrated, examples: Sequence[Example]) -> list[float]:
        """Return the score of every prompt, in order, 0 to 2."""
        found: list[list[float]] = [[] for _ in examples]
        for place, probe in enumerate(calibrated.texts[PROBES]):
            replies = calibrated.texts[REPLIES][place * self.samples : (place + 1) * self.samples]
            sampled = self.sampled(served, probe + JOIN, examples, calibrated.seed)
            reference, *others = self._embedded(served, [list(replies), *sampled])
            for scores, other in zip(found, others, strict=True):
                scores.append(earth_mover(cosine_distances(reference, other)))
        return [fmean(scores) for scores in found]

    def sampled(self, served: ServedModel, before: str, examples: Sequence[Example], seed: int) -> list[list[str]]:
        """Return sampled answers to every prompt, with ``before`` in front of what the user writes."""
        from harness.generation.sampled import sample

        encoding = replace(served.encoding, prefix=(before + (served.encoding.prefix or "")) or None)
        return sample(
            served.model,
            served.tokenizer,
            [encoding.question(example) for example in examples],
            count=self.samples,
            new_tokens=self.tokens,
            top_k=TOP_K,
            seed=seed,
        )

    def cost(self, prompts: int, probes: int) -> dict[str, int]:
        """Return the forward passes over whole prompts, and those over single tokens of one sample."""
        asked = prompts * probes
        return {"prompt_passes": asked, "token_passes": asked * self.samples * (self.tokens - 1)}

    def _embedded(self, served: ServedModel, texts: Sequence[Sequence[str]]) -> list[Any]:
        """Return the embeddings of each group of texts, ``[texts, size]``, comparable among all of them."""
        import numpy as np

        found = self.encoder.embed([text for group in texts for text in group], device=str(served.model.device))
        return list(np.split(found, np.cumsum([len(group) for group in texts])[:-1]))


@final
@dataclass(frozen=True, kw_only=True)
class Beat:
    """Rejects prompts whose score is above a threshold.

    Attributes:
        false_positives: share of the calibration's harmless prompts that may be rejected.
        threshold: rejects scores above this number instead; null takes it from the harmless prompts.
        calibration: how prompts are scored.
    """

    name: ClassVar[str] = "beat"
    version: ClassVar[int] = 1
    false_positives: float = 0.05
    threshold: float | None = None
    calibration: Signatures = field(default_factory=Signatures)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = below_one(self, "false_positives")
        if self.threshold is None and self.calibration.benign is None:
            reason = "null, but no harmless prompts are scored to find one; expected a number, as 0.5"
            found.append(Problem("threshold", reason))
        return found

    def verdicts(
        self, served: ServedModel, calibrated: Calibrated, examples: Sequence[Example], *, facts: dict[str, Any]
    ) -> list[Verdict]:
        """Score every prompt and compare it with the threshold."""
        scores = self.calibration.scores(served, calibrated, examples)
        limit = self.threshold
        if limit is None:
            limit = quantile(calibrated.tensors[BENIGN].tolist(), self.false_positives)
        facts["threshold"] = limit
        facts["probing"] = self.calibration.cost(len(examples), self.calibration.probes)
        return [Verdict(score > limit, score) for score in scores]


def quantile(scores: Sequence[float], above: float) -> float:
    """Return the smallest score such that at most a share ``above`` of all is greater."""
    ordered = sorted(scores)
    return ordered[max(ceil(len(ordered) * (1 - above) - 1e-9), 1) - 1]
