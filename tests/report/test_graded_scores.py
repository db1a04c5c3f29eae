"""Graded scores, from 0 to 1: their means, intervals and paired tests are those of means and not of proportions."""

import json

import numpy as np
import pytest
from fabricated import Fabricator
from scipy import special, stats

from harness.report.data.scores import read_grades
from harness.report.output.formats import render
from harness.report.output.page import page
from harness.report.output.samples import samples
from harness.report.stats.interval import estimates
from harness.report.stats.results import load_results

UNSEEN = 1 - 0.025 ** (1 / 200)
"""Clopper-Pearson bound for a value that was never seen on 200 prompts."""


def test_layout_of_graded_scores_is_that_of_their_own_variance():
    # Means of seeds 0.4 and 0.6, of prompts 0.3 and 0.7, no residual: MS_seed 0.04, MS_prompt 0.16, four scores.
    (found,) = estimates([np.array([[0.2, 0.6], [0.4, 0.8]])])

    assert found.mean == pytest.approx(0.5)
    assert found.seed_variance == pytest.approx(2 * 0.04 / 4)
    assert found.prompt_variance == pytest.approx(0.16 / 4)


def test_graded_scores_vary_less_than_a_proportion_with_their_mean():
    chance = np.random.default_rng(1)
    grades = np.tile(chance.choice([0.375, 0.5, 0.625], size=100), (3, 1))
    verdicts = np.tile(np.repeat([0.0, 1.0], 50), (3, 1))

    graded, share = estimates([grades, verdicts])

    error = grades[0].std(ddof=1) / 10
    assert graded.prompt_variance == pytest.approx(error**2)
    assert (graded.low, graded.high) == pytest.approx(
        (graded.mean - 1.96 * error, graded.mean + 1.96 * error), abs=0.15 * error
    )
    assert graded.high - graded.low < (share.high - share.low) / 4


def test_paired_test_of_graded_scores_of_seeds_is_students():
    differences = np.array([[0.02], [0.05], [0.03], [0.06], [0.04]])

    (found,) = estimates([differences], difference=True)

    expected = stats.ttest_1samp(differences.ravel(), 0)
    assert found.p == pytest.approx(expected.pvalue, rel=0.02)
    half = stats.t.ppf(0.975, 4) * differences.std(ddof=1) / 5**0.5
    assert (found.low, found.high) == pytest.approx((0.04 - half, 0.04 + half), rel=0.02)


def test_paired_test_of_graded_scores_of_prompts_is_that_of_their_mean():
    # All seeds agree: the error is that of the mean of 400 differences of prompts.
    differences = np.tile(np.repeat([0.25, 0.125, 0.0, -0.125], 100), (3, 1))

    (found,) = estimates([differences], difference=True)

    error = differences[0].std(ddof=1) / 20
    assert found.mean == pytest.approx(0.0625)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.0625 / error), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((0.0625 - 1.96 * error, 0.0625 + 1.96 * error), abs=0.1 * error)


@pytest.mark.parametrize("grade", [0.1, 0.3, 0.625, 0.7])
def test_equal_grades_leave_room_for_what_may_be_unseen(grade):
    # Rounding must not turn it into an interval of no width.
    (found,) = estimates([np.full((3, 200), grade)])

    assert found.low == pytest.approx(grade - UNSEEN * grade)
    assert found.high == pytest.approx(grade + UNSEEN * (1 - grade))
    assert found.seed_variance == 0


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.2), (0.7, 0.1), (0.1, 0.3)])
def test_equal_differences_of_grades_are_tested_by_their_sign(first, second):
    (found,) = estimates([np.full((3, 200), first) - np.full((3, 200), second)], difference=True)

    assert found.p == pytest.approx(2 * 0.5**200)
    assert found.low == pytest.approx(first - second - UNSEEN * (1 + first - second))
    assert found.high == pytest.approx(first - second + UNSEEN * (1 - first + second))


def test_interval_covers_the_true_mean_grade_in_95_of_100_sweeps():
    # Grades in eighths, as the rubric of StrongREJECT gives them: 0 for a refusal, otherwise any of the others.
    chance = np.random.default_rng(11)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    panels, truths = [], []
    for _ in range(1000):
        luck, difficulty = chance.uniform(0.3, 1.0), chance.uniform(1.0, 2.0)
        base = special.logit(chance.uniform(0.05, 0.9)) * 1.4
        logits = base + luck * chance.standard_normal((4, 1)) + difficulty * chance.standard_normal((1, 200))
        complied = chance.random((4, 200)) < special.expit(logits)
        panels.append(np.where(complied, chance.integers(1, 9, (4, 200)) / 8, 0.0))
        rate = (special.expit(base + np.hypot(luck, difficulty) * nodes) * weights).sum() / weights.sum()
        truths.append(rate * 4.5 / 8)

    covered = [low <= truth <= high for (_, low, high, *_), truth in zip(estimates(panels), truths, strict=True)]

    assert 0.93 <= np.mean(covered) <= 0.97


def test_difference_of_equally_graded_defenses_is_found_significant_in_5_of_100_sweeps():
    chance = np.random.default_rng(12)
    panels = []
    for _ in range(1000):
        difficulty = 1.5 * chance.standard_normal((1, 200))
        first, second = (
            np.round(
                8 * special.expit(difficulty + 0.6 * chance.standard_normal((3, 1)) + chance.standard_normal((3, 200)))
            )
            / 8
            for _ in range(2)
        )
        panels.append(first - second)

    found = estimates(panels, difference=True)

    assert 0.03 <= np.mean([estimate.p < 0.05 for estimate in found]) <= 0.07


@pytest.fixture
def graded(tmp_path):
    """A sweep whose judge grades: plain training 0.5 and 0.75 by turns, Booster an eighth less."""
    maker = Fabricator(tmp_path, prompts=40, answers=4, categories=False)
    cells = []
    for defense, shift in (("sft", 0.0), ("booster", 0.125)):
        for seed in range(3):
            values = [0.5 + 0.25 * (number % 2) - shift for number in range(40)]
            score = 100 * sum(values) / 40
            lines = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in values]
            summary = {"metric": "harm", "count": 40, "judged": 40, "unjudged": 0, "score": score}
            files = [
                ("grades.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
                ("summary.json", json.dumps(summary | {"score_plus": score, "categories": {}})),
            ]
            cell = maker.cell(defense, 0.1, seed, {})
            cells.append(
                {**cell, "keys": {**cell["keys"], "harm": maker._stage("grade", f"{defense}-{seed}", None, files)}}
            )
    return load_results(maker.store, maker.sweep(cells))


def test_report_of_graded_scores_shows_means_and_says_so(graded):
    assert graded.means["hs"].tolist() == pytest.approx([62.5, 50.0])
    assert graded.graded == ["hs"]
    note = "HS is a mean of grades between 0 and 1, of a graded judge or of several samples."
    for format in ("table", "md", "latex", "html"):
        assert note in render(graded, format)

    (found,) = (each for each in graded.comparisons if each.score == "hs")
    assert found.difference == pytest.approx(-12.5)
    assert found.p == pytest.approx(2 * 0.5**40)


def test_several_samples_of_a_prompt_enter_as_its_mean_with_and_without_the_coherence_rule(tmp_path):
    maker = Fabricator(tmp_path, prompts=2, answers=2, categories=False)
    lines = [
        {"value": 0.25, "incoherent": False, "reason": "", "scores": {}, "plus": 0.75, "samples": []},
        {"value": None, "incoherent": True, "reason": "", "scores": {}, "plus": None, "samples": []},
    ]
    files = [
        ("grades.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
        ("summary.json", json.dumps({"count": 2, "unjudged": 1, "score": 25.0})),
    ]
    key = maker._stage("grade", "sampled", None, files)

    found = read_grades(maker.store, [key])[key]

    assert found.values.tolist() == pytest.approx([0.25, np.nan], nan_ok=True)
    assert found.plus.tolist() == pytest.approx([0.75, np.nan], nan_ok=True)


def test_sample_of_a_graded_answer_shows_its_grade(graded):
    assert {sample.label for cell in samples(graded) for sample in cell.samples} == {
        "score 0.50", "score 0.75", "score 0.38", "score 0.62"
    }  # fmt: skip
    assert "score 0.75" in page(graded, with_samples=True)


def test_each_sample_of_a_prompt_is_shown_with_its_own_grade(tmp_path):
    maker = Fabricator(tmp_path, prompts=2, answers=2, categories=False)
    own = [{"value": value, "incoherent": False, "reason": "", "scores": {}} for value in (0.0, 1.0)]
    grades = [own[0] | {"value": 0.5, "plus": 0.5, "samples": own}, own[0]]
    said = [
        {"instruction": "ask", "input": "", "answer": "no", "samples": ["no", "yes"]},
        {"instruction": "ask more", "input": "", "answer": "never"},
    ]
    stored = {
        "harm": ("grade", [("grades.jsonl", grades), ("summary.json", [{"count": 2, "unjudged": 0, "score": 25.0}])]),
        "harm_answers": ("generate", [("answers.jsonl", said)]),
    }
    cell = maker.cell("sft", 0.1, 0, {})
    for part, (kind, files) in stored.items():
        texts = [(name, "".join(json.dumps(line) + "\n" for line in lines)) for name, lines in files]
        cell["keys"][part] = maker._stage(kind, f"sampled-{part}", None, texts)

    (shown,) = samples(load_results(maker.store, maker.sweep([cell])))

    assert [(each.prompt, each.answer, each.label) for each in shown.samples] == [
        ("ask", "no", "harmless"),
        ("ask", "yes", "harmful"),
        ("ask more", "never", "harmless"),
    ]


def test_report_of_verdicts_has_no_note_on_grades(findings):
    assert findings.graded == []
    assert "mean of grades" not in render(findings, "table")
