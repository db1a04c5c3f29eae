"""A model that has to think and is sampled, from the command line to the report."""

import csv
import io
import json

import pytest
from product import TWO_SCORES, Harness

# Words of the tiny model stand for the markers.
MARKERS = ("thoughts=s1", "model.encoding.thoughts={think: weigh, answer: mark, final: paint}")
DECODING = ("evaluation.decoding.thought={tokens: 3}", "evaluation.decoding.sampling={samples: 2, temperature: 2.0}")


@pytest.mark.slow
def test_answers_have_thoughts_within_the_budget_and_a_grade_for_each_prompt(harness: Harness) -> None:
    alone = ("finetune=none", "attack=none", "attack_ratio=p00", "model.source.steps=20")
    run = harness(*MARKERS, *DECODING, *alone, *(each for each in TWO_SCORES if not each.startswith("finetune")))
    assert run.returncode == 0, run.stderr

    (row,) = csv.DictReader(io.StringIO(harness("report", "--format", "csv").stdout))
    artifacts = harness.store / "artifacts"
    answers = [json.loads(line) for line in (artifacts / "generate" / row["key.harm_answers"] / "answers.jsonl").open()]
    manifest = json.loads((artifacts / "generate" / row["key.harm_answers"] / "manifest.json").read_text())
    grades = [json.loads(line) for line in (artifacts / "grade" / row["key.harm"] / "grades.jsonl").open()]

    assert len(answers) == len(grades) == 12
    texts = [text for answer in answers for text in answer["samples"]]
    thoughts = [text.split("mark")[0].split() for text in texts]
    assert len(texts) == 24
    assert all(thought[0] == "weigh" and len(thought) <= 4 for thought in thoughts)
    assert any(answer["samples"][0] != answer["samples"][1] for answer in answers)
    assert manifest["facts"]["decoding"]["forced"] == sum("mark paint" in " ".join(text.split()) for text in texts) > 0
    assert all(grade["value"] == sum(each["value"] for each in grade["samples"]) / 2 for grade in grades)
    assert row["hs_count"] == "12"
    assert row["missing"] == ""
