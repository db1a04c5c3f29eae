"""Measure: a model's results on a benchmark that runs the model itself, one per document."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Score
from harness.engine.files import open_regular
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.protocols import Benchmark
from harness.stages.generate import read_answers, write_answers
from harness.stages.inputs import ModelStage

SCORES = "scores.jsonl"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Measure(Stage):
    """Results of one model on a benchmark.

    The artifact is ``answers.jsonl``, as that of ``Generate``, and ``scores.jsonl``: one object per document in the
    same order, with ``value`` and ``explanation``, and ``categories``, see ``Score``. Facts: ``prompts``, the number of
    documents; ``benchmark``, what the benchmark reports; ``arithmetic``, the dtypes.

    Attributes:
        model: the stage whose model is measured.
        benchmark: runs the model.
        encoding: template and system prompt of an instruct model; null leaves the prompts as the benchmark writes them.
    """

    name: ClassVar[str] = "measure"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    fuses_siblings: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    model: ModelStage
    benchmark: Benchmark
    encoding: Encoding | None = None

    def preflight(self) -> list[Problem]:
        """Check that the benchmark can run."""
        return self.benchmark.preflight()

    def run(self, ctx: StageContext) -> None:
        """Run the benchmark and write the artifact."""
        from harness.generation.arithmetic import arithmetic_of
        from harness.generation.transformers import arithmetic, evaluating
        from harness.models.loading import loaded_model

        with (
            loaded_model(self.model.weights(ctx.input), ctx.memory, ctx.device) as loaded,
            evaluating(loaded.model) as model,
            arithmetic(model),
        ):
            ctx.facts["arithmetic"] = arithmetic_of(model)
            measured = self.benchmark.measure(model, loaded.tokenizer, encoding=self.encoding)
        write_answers(ctx.out, [row.example for row in measured.rows], [row.response for row in measured.rows])
        with (ctx.out / SCORES).open("w", encoding="utf-8") as file:
            for _, _, score in measured.rows:
                record = {**score._asdict(), "categories": dict(score.categories)}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        ctx.facts["benchmark"] = dict(measured.facts)
        ctx.facts["prompts"] = len(measured.rows)

    def answers(self, locate: Locate) -> list[dict[str, Any]]:
        """Return the documents with the model's responses."""
        return read_answers(locate(self))

    def scores(self, locate: Locate) -> list[Score]:
        """Return the score of every document, in the order of the answers."""
        with open_regular(locate(self) / SCORES) as file:
            return [Score(**json.loads(line)) for line in file]
