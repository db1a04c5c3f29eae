"""Score: the log-likelihood of each class of a task as the answer to each prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.encode import Encoding
from harness.engine.files import open_regular
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.protocols import ExampleSource
from harness.stages.inputs import ModelStage

LIKELIHOODS = "likelihoods.jsonl"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreClasses(Stage):
    """Log-likelihoods of a model for a constrained task.

    The artifact is ``likelihoods.jsonl``: one list per prompt, in order, with the log-likelihood in nats of each class
    as the whole answer, its end token included; null if ``encoding.max_length`` leaves no room for an answer. Facts:
    ``prompts``, their number; ``unscored``, how many have no likelihoods; ``arithmetic``, the dtypes.

    Attributes:
        model: the stage whose model is asked.
        prompts: the source of the prompts.
        labels: the classes.
        encoding: prompt template and tokenization.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    fuses_siblings: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    model: ModelStage
    prompts: ExampleSource
    labels: tuple[str, ...]
    encoding: Encoding

    def preflight(self) -> list[Problem]:
        """Check the source of the prompts."""
        return self.prompts.preflight()

    def run(self, ctx: StageContext) -> None:
        """Compute the likelihoods and write the artifact."""
        from harness.generation.arithmetic import arithmetic_of
        from harness.generation.likelihood import log_likelihoods
        from harness.models.loading import loaded_model

        examples = self.prompts.examples()
        answered = [example._replace(output=label) for example in examples for label in self.labels]
        with loaded_model(self.model.weights(ctx.input), ctx.memory, ctx.device) as loaded:
            rows = self.encoding.encode_each(loaded.tokenizer, answered)
            known = [row for row in rows if row is not None]
            scored = iter(log_likelihoods(loaded.model, known))
            ctx.facts["arithmetic"] = arithmetic_of(loaded.model)
        values = [None if row is None else next(scored) for row in rows]
        count = len(self.labels)
        by_prompt = [values[start : start + count] for start in range(0, len(values), count)]
        complete = [None if None in each else each for each in by_prompt]
        with (ctx.out / LIKELIHOODS).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(each) + "\n" for each in complete)
        ctx.facts["prompts"] = len(examples)
        ctx.facts["unscored"] = complete.count(None)

    def likelihoods(self, locate: Locate) -> list[list[float] | None]:
        """Return the log-likelihoods of the classes for each prompt, in order; None where there are none."""
        with open_regular(locate(self) / LIKELIHOODS) as file:
            return [json.loads(line) for line in file]
