"""Several judges on one sweep: what they share, how far they agree, and whether the order of the defenses changes."""

import json
from math import isnan

import numpy as np
import pytest
from composed import compose
from fabricated import PROTOCOL, Fabricator

from harness.config.build import cells_of
from harness.report.data.comparability import protocol_differences
from harness.report.data.judges import judge_labels
from harness.report.figures.catalog import figure_catalog
from harness.report.output.formats import render
from harness.report.stats.agreement import cohens_kappa, krippendorff_alpha
from harness.report.stats.judge_order import Order
from harness.report.stats.results import load_results

NAN = float("nan")
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): four observers, twelve units, missing values.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([15, 10, 5, 20], 0.4),  # equal 0.7, by chance (25 * 30 + 25 * 20) / 50**2 = 0.5
        ([45, 25, 15, 15], 0.06 / 0.46),  # equal 0.6, by chance (60 * 70 + 40 * 30) / 100**2 = 0.54
        ([5, 0, 0, 5], 1.0),
        ([0, 5, 5, 0], -1.0),
        ([3, 2, 0, 0], 0.0),  # the first judge gives one verdict only
        ([5, 0, 0, 0], NAN),
        ([0, 0, 0, 0], NAN),
    ],
)
def test_kappa_is_the_share_of_equal_verdicts_beyond_chance(table, kappa):
    assert float(cohens_kappa(np.array(table))) == pytest.approx(kappa, nan_ok=True)


def test_alpha_is_that_of_the_published_examples():
    assert krippendorff_alpha(np.array(OBSERVERS)) == pytest.approx(0.849, abs=5e-4)
    two = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert krippendorff_alpha(np.array(two, dtype=float)) == pytest.approx(0.095, abs=5e-4)


def test_alpha_compares_grades_and_not_verdicts():
    # Differences 0.25, 0, 0: observed 2 * 0.25**2 / 2 * 2 / 6; all six scores: mean 0.625, squares 0.71875 around it.
    scores = np.array([[0.0, 1.0, 0.75], [0.25, 1.0, 0.75]])

    known = scores.ravel()
    expected = 2 * ((known - known.mean()) ** 2).sum() / 5
    assert expected == pytest.approx(2 * 0.84375 / 5)
    assert krippendorff_alpha(scores) == pytest.approx(1 - (2 * 2 * 0.03125 / 6) / (2 * 0.84375 / 5))


@pytest.mark.parametrize("scores", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, NAN], [NAN, 0.0]], [[], []]])
def test_alpha_without_variation_or_common_answers_is_undefined(scores):
    assert isnan(krippendorff_alpha(np.array(scores)))


def test_judges_of_a_sweep_share_every_stage_but_their_own_grades():
    tiny, keywords, affirmative = cells_of(compose(["judge=tiny,keywords,affirmative"]))

    for other in (keywords, affirmative):
        differing = {part for part in tiny.keys if tiny.keys[part] != other.keys[part]}
        assert differing == {"harm", "aligned_harm"}
    assert len({cell.keys["harm"] for cell in (tiny, keywords, affirmative)}) == 3


def test_judge_is_named_by_what_tells_it_apart():
    def openai(model, temperature=0.0, version=1):
        return {
            "judge.name": "openai", "judge.version": version, "judge.fields.model": model,
            "judge.fields.temperature": temperature, "judge.fields.max_tokens": 9, "new_tokens": 1,
        }  # fmt: skip

    keywords = {"judge.name": "keywords", "judge.version": 2, "judge.fields.refusals.0": "no"}

    assert judge_labels([keywords, openai("a"), keywords]) == ["keywords", "openai", "keywords"]
    assert judge_labels([openai("a"), openai("b")]) == ["openai (model a)", "openai (model b)"]
    assert judge_labels([openai("a"), openai("a", 1.0)]) == ["openai (temperature 0)", "openai (temperature 1)"]
    assert judge_labels([openai("a"), openai("b")], swept=["judge.model"]) == ["openai", "openai"]
    assert judge_labels([openai("a"), openai("a", version=2)]) == ["openai", "openai"]
    same = {f"judge.fields.f{number}": 7 for number in range(4)}
    many = [{"judge.name": "j", **same, "judge.fields.last": number} for number in range(2)]
    assert judge_labels(many) == ["j (last 0)", "j (last 1)"]
    alike = [
        {"judge.name": "j", **{f"judge.fields.{name}": n for name, n in zip("abcd", each, strict=True)}}
        for each in ("1111", "2222", "1113")
    ]
    assert judge_labels(alike) == ["j (a 1, b 1, c 1)", "j (a 2, b 2, c 2)", "j (a 1, b 1, c 1) #2"]


class Sweep:
    """A sweep of one judge per name, whose verdicts are given: by judge and defense, one row per seed.

    A name of a defense may be ``DEFENSE at RATE``, with a swept learning rate of the fine-tuning.
    """

    def __init__(self, root, verdicts):
        prompts = len(next(iter(next(iter(verdicts.values())).values()))[0])
        self.maker = Fabricator(root, prompts=prompts, answers=4, categories=False)
        cells = []
        for judge, by_defense in verdicts.items():
            for condition, seeds in by_defense.items():
                defense, _, rate = condition.partition(" at ")
                settings = {"finetune.budget.learning_rate": float(rate)} if rate else {}
                for seed, values in enumerate(seeds):
                    cell = self.maker.cell(defense, 0.1, seed, settings)
                    keys = {**cell["keys"], "harm": self.graded(f"{judge}-{condition}-{seed}", values)}
                    del keys["aligned_harm"]
                    protocol = {**PROTOCOL, **settings, "judge.name": judge, f"judge.fields.{judge}": 1}
                    cells.append({**cell, "keys": keys, "protocol": protocol})
        self.record = self.maker.sweep(cells)
        self.results = load_results(self.maker.store, self.record)

    def graded(self, key, values):
        """Write a grade with these values."""
        lines = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in values]
        known = [value for value in values if value is not None]
        score = 100 * sum(known) / len(known) if known else None
        summary = {
            "metric": "harm", "count": len(values), "judged": len(known), "unjudged": len(values) - len(known),
            "score": score, "score_plus": score, "categories": {},
        }  # fmt: skip
        files = [("grades.jsonl", "".join(json.dumps(x) + "\n" for x in lines)), ("summary.json", json.dumps(summary))]
        return self.maker._stage("grade", key, None, files)


def test_agreement_counts_the_answers_that_both_judged(tmp_path):
    # Of eight answers, one abstention each; of the six left: both harmless 2, both harmful 2, one each way.
    one = [0, 0, 1, 1, 0, 1, None, 1]
    two = [0, 0, 1, 1, 1, 0, 0, None]
    sweep = Sweep(tmp_path, {"one": {"sft": [one, one]}, "two": {"sft": [two, two]}})

    agreement = sweep.results.judges.agreement

    (pair,) = agreement.pairs
    assert (pair.first, pair.second, pair.answers) == ("one", "two", 12)
    assert pair.equal == pytest.approx(100 * 4 / 6)
    assert pair.kappa == pytest.approx((4 / 6 - 0.5) / 0.5)
    assert pair.low < pair.kappa < pair.high
    assert [(judge.name, judge.answers, judge.abstentions) for judge in agreement.judges] == [
        ("one", 16, 2), ("two", 16, 2)
    ]  # fmt: skip
    assert [judge.score for judge in agreement.judges] == pytest.approx([100 * 4 / 7, 100 * 3 / 7])


def test_interval_of_kappa_resamples_prompts_and_not_answers(tmp_path):
    # Sixteen seeds that repeat two seeds' answers tell no more about other prompts: the interval stays as wide.
    one, two = [0, 0, 0, 1, 1, 1, 0, 1] * 3, [0, 0, 1, 1, 1, 0, 0, 1] * 3
    few = Sweep(tmp_path / "few", {"one": {"sft": [one] * 2}, "two": {"sft": [two] * 2}})
    many = Sweep(tmp_path / "many", {"one": {"sft": [one] * 16}, "two": {"sft": [two] * 16}})

    pairs = [sweep.results.judges.agreement.pairs[0] for sweep in (few, many)]

    assert pairs[1].answers == 8 * pairs[0].answers
    assert (pairs[0].low, pairs[0].high) == pytest.approx((pairs[1].low, pairs[1].high))


def test_order_that_is_reversed_significantly_is_said_in_a_sentence(tmp_path):
    high, low = [1.0] * 40, [0.0] * 40
    verdicts = {
        "one": {"sft": [high] * 3, "vaccine": [[1.0] * 20 + [0.0] * 20] * 3, "booster": [low] * 3},
        "two": {"sft": [low] * 3, "vaccine": [[1.0] * 20 + [0.0] * 20] * 3, "booster": [high] * 3},
    }
    results = Sweep(tmp_path, verdicts).results

    (order,) = results.judges.orders
    assert (order.pairs, order.reversed, order.tied, order.significant) == (3, 3, 0, 3)
    sentence = (
        "The order of the defenses by HS does not survive the change of judge from one to two: of 3 pairs of defenses "
        "at the same ratio, 3 are reversed (3 significantly under both); by mean HS, one: booster < vaccine < sft; "
        "two: sft < vaccine < booster."
    )
    assert order.sentence == sentence
    for format in ("table", "md", "latex", "html"):
        sign = {"html": "&lt;", "latex": "$<$"}.get(format, "<")
        assert sentence.replace("<", sign) in render(results, format)
    assert json.loads(render(results, "json"))["judges"]["orders"][0]["reversed"] == 3


def test_order_that_holds_is_said_to_survive(tmp_path):
    verdicts = {
        "one": {"sft": [[1, 1, 1, 0]] * 2, "booster": [[1, 0, 0, 0]] * 2},
        "two": {"sft": [[1, 1, 0, 0]] * 2, "booster": [[0, 0, 0, 0]] * 2},
    }

    (order,) = Sweep(tmp_path, verdicts).results.judges.orders

    assert order.sentence == (
        "The order of the defenses by HS survives the change of judge from one to two: 1 of 1 pair of defenses at the "
        "same ratio ordered alike; by mean HS, one: booster < sft; two: booster < sft."
    )


def test_reversal_within_noise_is_not_significant_and_a_tie_is_no_reversal(tmp_path):
    verdicts = {
        "one": {"sft": [[1, 0, 0, 0], [0, 1, 1, 0]], "vaccine": [[1, 0, 0, 0], [0, 0, 1, 0]], "booster": [[1] * 4] * 2},
        "two": {"sft": [[1, 0, 0, 0], [0, 1, 0, 0]], "vaccine": [[1, 0, 0, 1], [0, 0, 1, 0]]},
    }  # fmt: skip
    verdicts["two"]["booster"] = [[1, 0, 0, 0]] * 2

    (order,) = Sweep(tmp_path, verdicts).results.judges.orders

    # one: sft 37.5, vaccine 25, booster 100; two: sft 25, vaccine 37.5, booster 25.
    assert (order.pairs, order.reversed, order.tied, order.significant) == (3, 2, 1, 0)
    assert order.orders == ("vaccine < sft < booster", "sft = booster < vaccine")
    assert order.sentence.startswith(
        "The order of the defenses by HS survives the change of judge from one to two within noise only: of 3 pairs of "
        "defenses at the same ratio, 2 are reversed (0 significantly under both), 1 tied under one judge only; by mean"
    )


def test_defenses_trained_with_different_settings_are_no_pair(tmp_path):
    # At each learning rate the order is the same under both judges; across the two rates it would be reversed.
    verdicts = {
        "one": {
            "sft at 1e-4": [[1, 1, 0, 0]] * 2, "booster at 1e-4": [[1, 0, 0, 0]] * 2,
            "sft at 1e-3": [[1, 1, 1, 1]] * 2, "booster at 1e-3": [[1, 1, 1, 0]] * 2,
        },
        "two": {
            "sft at 1e-4": [[1, 1, 1, 1]] * 2, "booster at 1e-4": [[1, 1, 1, 0]] * 2,
            "sft at 1e-3": [[1, 1, 0, 0]] * 2, "booster at 1e-3": [[1, 0, 0, 0]] * 2,
        },
    }  # fmt: skip

    (order,) = Sweep(tmp_path, verdicts).results.judges.orders

    assert (order.pairs, order.reversed, order.tied) == (2, 0, 0)


def test_defense_that_one_judge_could_not_judge_has_no_place_in_the_order(tmp_path):
    verdicts = {
        "one": {"sft": [[1, 1, 1, 0]] * 2, "vaccine": [[1, 1, 0, 0]] * 2, "booster": [[1, 0, 0, 0]] * 2},
        "two": {"sft": [[1, 1, 1, 1]] * 2, "vaccine": [[1, 1, 1, 0]] * 2, "booster": [[None] * 4] * 2},
    }

    (order,) = Sweep(tmp_path, verdicts).results.judges.orders

    assert (order.pairs, order.reversed, order.tied, order.significant) == (1, 0, 0, 0)
    assert order.orders == ("vaccine < sft", "vaccine < sft")


def test_graded_scores_are_ordered_by_their_means(tmp_path):
    verdicts = {
        "one": {"sft": [[0.9, 0.8, 0.9, 0.8]] * 2, "booster": [[0.6, 0.7, 0.6, 0.7]] * 2},
        "two": {"sft": [[1, 1, 1, 1]] * 2, "booster": [[1, 1, 0, 1]] * 2},
    }

    judges = Sweep(tmp_path, verdicts).results.judges

    assert judges.orders[0].reversed == judges.orders[0].tied == 0
    assert [judge.score for judge in judges.agreement.judges] == pytest.approx([75.0, 87.5])
    assert judges.agreement.pairs[0].equal == pytest.approx(87.5)


def test_rows_of_several_judges_are_named_and_never_compared_with_each_other(tmp_path):
    verdicts = {
        "one": {"sft": [[1.0] * 30] * 3, "booster": [[0.0] * 30] * 3},
        "two": {"sft": [[0.0] * 30] * 3, "booster": [[1.0] * 30] * 3},
    }
    results = Sweep(tmp_path, verdicts).results

    assert results.rows["judge"].tolist() == ["one"] * 6 + ["two"] * 6
    assert len(results.conditions) == 4
    assert {note for note in protocol_differences(results.rows).values() if note} == {"judge.name is two, not one"}
    names = [condition.names for condition in results.conditions]
    assert {(names[index]["defense"], names[index]["judge"]) for index, score in results.best if score == "hs"} == {
        ("booster", "one"), ("sft", "two")
    }  # fmt: skip
    compared = {(names[each.line]["judge"], names[each.other]["judge"]) for each in results.comparisons}
    assert compared == {("one", "one"), ("two", "two")}


def test_figure_shows_each_condition_under_each_judge(tmp_path):
    verdicts = {
        "one": {"sft": [[1, 1, 1, 0]] * 2, "booster": [[1, 0, 0, 0]] * 2},
        "two": {"sft": [[1, 1, 0, 0]] * 2, "booster": [[0, 0, 0, 0]] * 2},
    }

    (view,) = figure_catalog(Sweep(tmp_path, verdicts).results)["judges"]

    assert view.labels == ["sft, p=0.1", "booster, p=0.1"]
    assert [(part.name, list(part.x)) for part in view.parts] == [("one", [75.0, 25.0]), ("two", [50.0, 0.0])]
    assert [[round(place) for place in part.y] for part in view.parts] == [[0, 1], [0, 1]]
    assert "survives the change of judge" in view.alternative


def test_sweep_with_one_judge_has_no_comparison(drawn, findings):
    assert findings.judges is None
    assert "judge" not in findings.rows
    assert figure_catalog(findings)["judges"] == []
    assert "judges" not in json.loads(render(findings, "json"))


def test_no_common_scores_are_said_to_be_none():
    order = Order("one", "two", pairs=0, reversed=0, tied=0, significant=0, orders=("", ""))

    assert order.sentence == "No two defenses were scored by both one and two."
