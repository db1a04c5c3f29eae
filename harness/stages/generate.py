"""Generate: a model's generations for a list of prompts, stored so that several judges can grade them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.corpus import overlaps
from harness.corpora.encode import Encoding, Question
from harness.corpora.examples import Example
from harness.engine.files import open_regular
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.generation.decoding import Decoding
from harness.protocols import Calibrated, ExampleSource, RejectsPrompts, ServedModel, ServeMethod
from harness.stages.calibrate import Calibrate
from harness.stages.contamination import seen_in_training
from harness.stages.inputs import ModelStage

if TYPE_CHECKING:
    from harness.generation.answers import Answers
    from harness.generation.served import ServedAnswers

ANSWERS = "answers.jsonl"
VERDICTS = "verdicts.jsonl"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Generate(Stage):
    """Generations of one model for one list of prompts.

    The artifact is ``answers.jsonl``: one object per line, in the order of the prompts, with ``instruction``,
    ``input``, ``reference`` (the source's answer) and ``answer`` (the generation; of several samples, the first, and
    all of them as ``samples``). Facts: ``prompts``, their number;
    ``cut``, how many exceed ``decoding.max_prompt`` and are truncated; ``shared_with_training``, how many were seen in
    training; ``decoding``, how they were decoded (path, batch size, arithmetic).

    With a method at inference that rejects prompts, the artifact also has ``verdicts.jsonl``: one object per prompt, in
    order, with ``rejected`` and the ``score`` by which this was decided. The fact ``serve`` has their number,
    ``rejected``, and what else the method counts, such as its cost.

    Attributes:
        model: the stage whose model generates.
        prompts: the source of the prompts.
        new_tokens: maximum length of a generation, in tokens; with a thought budget, of its answer.
        encoding: prompt template and tokenization.
        decoding: decoding settings.
        serve: the method at inference; null generates with the model alone.
        calibrated: what the method learned beforehand; null if it has nothing to learn.
    """

    name: ClassVar[str] = "generate"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    fuses_siblings: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    model: ModelStage
    prompts: ExampleSource
    new_tokens: int
    encoding: Encoding
    decoding: Decoding
    serve: ServeMethod | None = None
    calibrated: Calibrate | None = None

    @property
    def screened(self) -> bool:
        """Whether prompts may be rejected."""
        return isinstance(self.serve, RejectsPrompts)

    def preflight(self) -> list[Problem]:
        """Check the source of the prompts."""
        return self.prompts.preflight()

    def run(self, ctx: StageContext) -> None:
        """Generate and write the artifact."""
        examples = self.prompts.examples()
        if self.serve is None:
            answers = self._generated(ctx, [self.encoding.question(example) for example in examples])
        else:
            answers = self._served(ctx, self.serve, examples)
        write_answers(ctx.out, examples, answers.texts, answers.samples)
        ctx.facts["cut"] = answers.cut
        ctx.facts["decoding"] = answers.facts
        ctx.facts["prompts"] = len(examples)
        ctx.facts["shared_with_training"] = overlaps(examples, seen_in_training(self, ctx.input))._asdict()

    def answers(self, locate: Locate) -> list[dict[str, Any]]:
        """Return the model's answers."""
        return read_answers(locate(self))

    def rejections(self, locate: Locate) -> list[bool]:
        """Return whether each prompt was rejected, in order."""
        with open_regular(locate(self) / VERDICTS) as file:
            return [json.loads(line)["rejected"] for line in file]

    def _served(self, ctx: StageContext, method: ServeMethod, examples: Sequence[Example]) -> "Answers":
        from harness.generation import served
        from harness.models.loading import loaded_model

        calibrated = Calibrated({}, {}) if self.calibrated is None else self.calibrated.calibration(ctx.input)
        with loaded_model(self.model.weights(ctx.input), ctx.memory, ctx.device) as loaded:
            given: ServedAnswers = served.answer(
                method,
                ServedModel(loaded.model, loaded.tokenizer, self.encoding),
                calibrated,
                examples,
                new_tokens=self.new_tokens,
                decoding=self.decoding,
            )
        ctx.facts["serve"] = given.facts
        if given.verdicts is not None:
            with (ctx.out / VERDICTS).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(verdict._asdict()) + "\n" for verdict in given.verdicts)
            ctx.facts["serve"] = {"rejected": sum(verdict.rejected for verdict in given.verdicts), **given.facts}
        return given.answers

    def _generated(self, ctx: StageContext, questions: list[Question]) -> "Answers":
        from harness.generation import transformers, vllm
        from harness.models.loading import loaded_model

        weights = self.model.weights(ctx.input)
        if self.decoding.engine == "vllm":
            return vllm.answer(
                weights,
                ctx.memory,
                questions,
                new_tokens=self.new_tokens,
                decoding=self.decoding,
                device=ctx.device,
                work=ctx.work,
                thoughts=self.encoding.thoughts,
            )
        with loaded_model(weights, ctx.memory, ctx.device) as loaded:
            return transformers.answer(
                loaded.model,
                loaded.tokenizer,
                questions,
                new_tokens=self.new_tokens,
                decoding=self.decoding,
                thoughts=self.encoding.thoughts,
            )


def write_answers(
    out: Path, examples: Sequence[Example], answers: Sequence[str], samples: Sequence[Sequence[str]] | None = None
) -> None:
    """Write answers to prompts in the format that ``read_answers`` reads, in the order of the prompts.

    Args:
        out: the artifact's folder.
        examples: the prompts.
        answers: one for each.
        samples: all samples of each prompt, the answer included; None if there are no others.
    """
    with (out / ANSWERS).open("w", encoding="utf-8") as file:
        for place, (example, answer) in enumerate(zip(examples, answers, strict=True)):
            row: dict[str, object] = {
                "instruction": example.instruction,
                "input": example.input,
                "reference": example.output,
                "answer": answer,
            }
            if samples is not None:
                row["samples"] = list(samples[place])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_answers(artifact: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the records of a ``Generate`` artifact, in order.

    Each has the texts ``instruction``, ``input``, ``reference`` and ``answer``, and with several samples of a prompt
    the list ``samples``.

    Args:
        artifact: the artifact's folder.
        limit: return only the first ``limit`` records; None returns all.

    Raises:
        UnreadableFile: the file is missing or not a regular file.
        ValueError: a line is not JSON.
    """
    with open_regular(artifact / ANSWERS) as file:
        return [json.loads(line) for line in islice(file, limit)]
