"""Leak: does the gradient that a client sends give away the row that it trained on?

A probe by gradient matching. Inverting a gradient to text (Zhu et al., 2019, arXiv:1906.08935; Wei et al., 2020,
arXiv:2004.10397) is out of scale for language models and adapters; here the server has a list of candidate rows, one
of which is the client's, and ranks them by the cosine between their gradients and the observed one. It knows the
weights: the gradients are those at the first step, from the aligned model with the adapter that fine-tuning starts
with. A method that changes what leaves the client (``protocols.DisguisesGradients``, such as ``dp_noise``) changes
what is observed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import Encoded
from harness.engine.checks import counts
from harness.engine.seeding import derive, generator
from harness.engine.stage import Stage, StageContext
from harness.errors import DataError, Problem
from harness.protocols import DisguisesGradients
from harness.stages.finetune import Finetune

if TYPE_CHECKING:
    from torch import Tensor

    from harness.protocols import Learner

MATCHES = "matches.jsonl"


@final
@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Settings of the probe.

    Attributes:
        candidates: number of distinct rows of the mixture among which the server looks.
        rows: number of these whose gradients are observed, one at a time.
    """

    name: ClassVar[str] = "leakage"
    version: ClassVar[int] = 1
    candidates: int = 50
    rows: int = 50

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "candidates", "rows")
        if not found and self.candidates < max(self.rows, 2):
            reason = f"{self.candidates} candidates for {self.rows} rows; expected at least as many, and two"
            found.append(Problem("candidates", reason))
        return found


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Leak(Stage):
    """How well rows are recognized by their gradients.

    The artifact is ``matches.jsonl``: one object per observed row, with the ``rank`` of the true row among the
    candidates and the ``cosine`` between the observed gradient and its own. Facts: ``leaked``, the share of rows that
    rank first; ``chance``, that of guessing; ``rank``, the mean rank; ``cosine``, the mean cosine.

    Attributes:
        tuned: the fine-tuning whose first step is observed. Only its settings and its mixture are read.
        probe: the settings of the probe.
        seed: the root seed.
    """

    name: ClassVar[str] = "leak"
    version: ClassVar[int] = 1
    loads_base: ClassVar[bool] = True
    reported_shares: ClassVar[Mapping[str, str]] = {
        "leaked": "share of rows that the server recognizes by their gradients (lower is better)",
    }
    tuned: Finetune
    probe: Leakage
    seed: int

    def preflight(self) -> list[Problem]:
        """Return no problems: what it reads is that of the fine-tuning."""
        return []

    def run(self, ctx: StageContext) -> None:
        """Compute the gradients of the candidates, and rank them for each observed one.

        Raises:
            DataError: the mixture has fewer distinct rows than there are candidates.
        """
        import torch

        from harness.mechanisms.gradient_matching import match
        from harness.models.loading import loaded_model
        from harness.training.learner import CausalLearner

        tuned, probe = self.tuned, self.probe
        distinct = list(dict.fromkeys(example for example, _ in tuned.mixture.mixture(ctx.input)))
        generator(self.seed, "leak").shuffle(distinct)
        with loaded_model(tuned.weights(ctx.input), ctx.memory, ctx.device) as loaded:
            encoded = tuned.encoding.encode_all(loaded.tokenizer, distinct).rows
            if len(encoded) < probe.candidates:
                raise DataError(
                    f"{probe.candidates} candidates requested, but the mixture has {len(encoded)} distinct rows; "
                    "expected at least as many. Lower `leakage.candidates`"
                )
            initial = tuned.start(loaded.model, ctx.input)
            with torch.no_grad():
                for name, parameter in loaded.model.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(initial[name])
            learner = CausalLearner(loaded.model, precision=tuned.budget.precision)
            rows = encoded[: probe.candidates]
            gradients = [_gradient(learner, row, loaded.tokenizer.pad_token_id) for row in rows]
        candidates = torch.stack([torch.cat([part.flatten() for part in each]) for each in gradients])
        method: object = tuned.method
        matches = []
        for place in range(probe.rows):
            sent = gradients[place]
            if isinstance(method, DisguisesGradients):
                sent = method.disguised(sent, derive(self.seed, "leak", str(place)))
            matches.append(match(torch.cat([part.flatten() for part in sent]), candidates, place))
        with (ctx.out / MATCHES).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(each._asdict()) + "\n" for each in matches)
        ctx.facts["leaked"] = fmean(each.rank == 1 for each in matches)
        ctx.facts["chance"] = 1 / probe.candidates
        ctx.facts["rank"] = fmean(each.rank for each in matches)
        ctx.facts["cosine"] = fmean(each.cosine for each in matches)


def _gradient(learner: Learner, row: Encoded, pad_id: int) -> list[Tensor]:
    from harness.corpora.batches import collate

    _, gradient = learner.gradient(collate([row], pad_id))
    return gradient
