"""The stage of a benchmark, with a benchmark that asks the model for its likeliest next word."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, final

import pytest
import torch

from harness.corpora.examples import Example, Measured, Score
from harness.engine.stage import StageContext
from harness.models.adapter import Lora
from harness.models.loading import ModelRef, loaded_model
from harness.protocols import Measurements
from harness.stages.generate import read_answers
from harness.stages.grade import Grade, read_grades, read_summary
from harness.stages.measure import Measure

WORDS = tuple(f"w{i}" for i in range(20))


@final
@dataclass(frozen=True, kw_only=True)
class NextWord:
    """Right is the word after the question's: w4 after w3. Every tenth document has no score."""

    name: ClassVar[str] = "next_word"
    version: ClassVar[int] = 1

    def preflight(self):
        return []

    @torch.no_grad()
    def measure(self, model, tokenizer, *, encoding) -> Measurements:
        assert encoding is None
        assert not model.training
        rows = []
        for place, word in enumerate(WORDS):
            ids = tokenizer(word, return_tensors="pt", add_special_tokens=False).input_ids
            found = tokenizer.convert_ids_to_tokens(int(model(ids).logits[0, -1].argmax()))
            right = f"w{place + 1}"
            score = Score(float(found == right), "next", {"word": float(found == right)})
            rows.append(Measured(Example(word, right), found, score if place % 10 else Score(None, "left out")))
        layers = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
        return Measurements(rows, {"adapted layers": len(layers)})


@final
class Model:
    """A stage of a model in given folders."""

    def __init__(self, **parts):
        self.key, self.ref = "model", ModelRef(base_key="base", **parts)

    def weights(self, locate):
        return self.ref


@pytest.fixture
def measured(tmp_path, save_base, save_adapter):
    """Measure a model with an adapter; return the folder of the results, the stage's facts and the worker's memory."""
    adapter = save_adapter("a", seed=1, lora=Lora(rank=4, targets="all-linear"))
    model = Model(base=save_base(), adapter=adapter)
    stage = Measure(model=model, benchmark=NextWord())
    out = tmp_path / "measured"
    out.mkdir()
    ctx = StageContext(out=out, work=tmp_path, locate=lambda stage: None, tracker=None)
    stage.run(ctx)
    return SimpleNamespace(out=out, facts=ctx.facts, memory=ctx.memory, model=model, stage=stage)


def expected(model, memory) -> Mapping[str, str]:
    with loaded_model(model.ref, memory) as loaded:
        rows = NextWord().measure(loaded.model.get_base_model(), loaded.tokenizer, encoding=None).rows
    return {row.example.instruction: row.response for row in rows}


def test_benchmark_runs_the_model_with_its_adapter_attached_and_the_base_is_kept_without(measured):
    bare = Model(base=measured.model.ref.base)

    assert measured.facts["benchmark"] == {"adapted layers": 14}
    assert measured.facts["prompts"] == len(WORDS)
    assert measured.facts["arithmetic"] == "float32"
    answers = {row["instruction"]: row["answer"] for row in read_answers(measured.out)}
    assert answers == expected(measured.model, measured.memory)
    with loaded_model(bare.ref, measured.memory) as loaded:
        assert not [name for name, _ in loaded.model.named_modules() if "lora" in name]


def test_every_document_is_graded_in_its_place_as_by_other_tasks(measured, tmp_path):
    grade = Grade(answers=measured.stage)
    out = tmp_path / "graded"
    out.mkdir()
    ctx = StageContext(out=out, work=tmp_path, locate=lambda stage: measured.out, tracker=None)

    grade.run(ctx)

    answers, grades, summary = read_answers(measured.out), read_grades(out), read_summary(out)
    values = [float(row["answer"] == row["reference"]) for row in answers]
    assert [grade["value"] for grade in grades] == [None if i % 10 == 0 else value for i, value in enumerate(values)]
    kept = [value for i, value in enumerate(values) if i % 10]
    assert (summary["metric"], summary["count"], summary["unjudged"]) == ("accuracy", 20, 2)
    assert summary["score"] == pytest.approx(100 * sum(kept) / len(kept))
    assert summary["categories"] == {"word": pytest.approx(summary["score"])}
    assert json.loads(json.dumps(ctx.facts)) == ctx.facts
