import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.engine.manifest import FileRecord, Manifest
from harness.engine.store import Store
from harness.errors import ConfigError
from harness.report.data.targets import Target
from harness.report.data.tidy import load_rows
from harness.report.output.formats import FORMATS, render, sheet
from harness.report.stats.results import load_results
from harness.report.stats.summary import summarise

PROTOCOL = {"judge": "keywords", "judge_version": 1, "prompts": 200, "adapter": "single"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _grade(
    store: Store,
    key: str,
    score: float | None,
    *,
    plus: float | None = None,
    unjudged: int = 0,
    verdicts: Sequence[float | None] = (),
) -> str:
    folder = store.root / "artifacts" / "grade" / key
    folder.mkdir(parents=True)
    summary = {
        "metric": "accuracy" if plus is None else "harm",
        "count": 200,
        "judged": 200 - unjudged,
        "unjudged": unjudged,
        "score": score,
        "score_plus": plus,
        "categories": {},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if verdicts:
        records = [{"value": found, "incoherent": False, "reason": "", "scores": {}} for found in verdicts]
        (folder / "grades.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = {path.name: FileRecord.of(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(key=key, kind="grade", files=files)
    (folder / "manifest.json").write_text(json.dumps(manifest.json()))
    return key


def _cell(
    defense: str,
    seed: int,
    keys: dict[str, str | None],
    *,
    ratio: float = 0.1,
    swept: dict[str, Any] | None = None,
    protocol: dict[str, Any] | None = None,
    task: str = "tiny",
) -> dict[str, Any]:
    labels = {"defense": defense, "task": task, "attack": "mix", "ratio": ratio, "model": "tiny", "seed": seed}
    return {"labels": labels, "swept": swept or {}, "protocol": protocol or PROTOCOL, "keys": keys}


def _record(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"id": "s1", "name": "demo", "created": "2026-01-01T00:00:00Z", "argv": [], "cells": list(cells)}


def _shown(store: Store, record: dict[str, Any], format: str = "table") -> str:
    return render(load_results(store, record), format)


def _heading(store: Store, record: dict[str, Any]) -> tuple[str, list[str]]:
    rows = load_rows(store, record)
    content = sheet(rows, summarise(rows))
    return content.caption, content.heading


def _seeds(store: Store, defense: str, scores: list[float], **how: Any) -> list[dict[str, Any]]:
    tag = f"{defense}{len(list(store.root.glob('artifacts/grade/*')))}"
    return [
        _cell(defense, seed, {"harm": _grade(store, f"{tag}h{seed}", score, plus=score + 1)}, **how)
        for seed, score in enumerate(scores)
    ]


def test_rows_hold_everything_that_was_measured(store: Store) -> None:
    keys = {
        "align": "al",
        "harm": _grade(store, "h", 40.0, plus=45.0, unjudged=3),
        "accuracy": _grade(store, "a", 90.5),
        "aligned_harm": _grade(store, "ah", 1.0, plus=2.0),
        "aligned_accuracy": _grade(store, "aa", None, unjudged=200),
    }
    record = _record(_cell("booster", 1, keys, swept={"defense.align.lamb": 5, "seed": 1}))

    (row,) = load_rows(store, record).to_dict(orient="records")

    assert (row["defense"], row["task"], row["attack"], row["ratio"], row["seed"]) == ("booster", "tiny", "mix", 0.1, 1)
    assert row["defense.align.lamb"] == 5
    assert (row["hs"], row["hs_plus"], row["fa"], row["aligned_hs"], row["aligned_hs_plus"]) == (40, 45, 90.5, 1, 2)
    assert (row["hs_count"], row["hs_unjudged"], row["fa_unjudged"]) == (200, 3, 0)
    assert row["aligned_fa"] != row["aligned_fa"], "nothing could be judged: no score"
    assert row["aligned_fa_unjudged"] == 200
    assert (row["key.align"], row["key.harm"], row["missing"]) == ("al", "h", "")
    assert row["protocol.judge"] == "keywords"


def test_rows_unfinished_cell_is_listed_as_missing(store: Store) -> None:
    (store.root / "artifacts" / "grade" / "half").mkdir(parents=True)
    (store.root / "artifacts" / "grade" / "half" / "summary.json").write_text("{")
    done = _cell("sft", 0, {"harm": _grade(store, "h", 40.0, plus=40.0), "accuracy": _grade(store, "a", 90.0)})
    part = _cell("sft", 1, {"harm": "half", "accuracy": "a"})
    none = _cell("vaccine", 0, {"harm": "x", "accuracy": "y", "aligned_harm": None})

    rows, text = load_rows(store, _record(done, part, none)), _shown(store, _record(done, part, none))

    assert list(rows["missing"]) == ["", "harm", "harm, accuracy"]
    assert list(summarise(rows)["seeds"]) == [2, 0]
    assert list(summarise(rows)["missing"]) == [1, 1]
    assert "2 of 3 cells are not finished:" in text
    assert "- defense=sft, task=tiny, attack=mix, ratio=0.1, model=tiny, seed=1: missing HS\n" in text
    assert "seed=0: missing HS, FA\n" in text


def test_many_unfinished_cells_are_told_together(store: Store) -> None:
    done = _cell("sft", 0, {"harm": _grade(store, "h", 40.0, plus=40.0)})
    cells = [
        _cell(defense, seed, {"harm": f"{defense}-{seed}"}) for defense in ("sft", "vaccine") for seed in (1, 2, 3)
    ]

    text = _shown(store, _record(done, *cells))

    assert "6 of 7 cells are not finished:\n" in text
    assert (
        "- 6 cells (defense=sft|vaccine, task=tiny, attack=mix, ratio=0.1, model=tiny, seed=1|2|3): missing HS\n"
        in text
    )


def test_rows_altered_grade_costs_its_row_and_no_other(store: Store) -> None:
    good = _cell("sft", 0, {"harm": _grade(store, "g", 20.0, plus=20.0)})
    record = _record(good, _cell("sft", 1, {"harm": _grade(store, "h", 40.0, plus=40.0)}))
    path = store.root / "artifacts" / "grade" / "h" / "summary.json"
    path.write_text(path.read_text().replace("40.0", "10.0"))

    rows, text = load_rows(store, record), _shown(store, record)

    assert rows["hs"].tolist()[0] == 20.0
    assert rows["hs"].isna().tolist() == [False, True]
    assert rows["missing"].tolist() == ["", "harm"]
    assert "was altered" in rows["notes"].tolist()[1]
    assert "was altered" in text


def test_summary_of_seeds_is_a_mean_with_an_interval(store: Store) -> None:
    record = _record(*_seeds(store, "sft", [40.0, 50.0, 60.0]))

    (line,) = summarise(load_rows(store, record)).to_dict(orient="records")

    assert line["seeds"] == 3
    assert line["hs"] == pytest.approx(50.0)
    half = 4.302653 * 10 / 3**0.5
    assert (line["hs_low"], line["hs_high"]) == pytest.approx((50 - half, 50 + half), rel=0.05)
    assert line["hs_plus"] == pytest.approx(51.0)
    assert line["hs_count"] == 600
    assert f"50.0 [{line['hs_low']:.1f}, {line['hs_high']:.1f}]" in _shown(store, record)


def test_summary_of_equal_seeds_has_an_interval_of_zero_without_their_prompts(store: Store) -> None:
    rows = load_rows(store, _record(*_seeds(store, "sft", [10.0, 10.0])))

    assert summarise(rows)[["hs_low", "hs_high"]].to_numpy().tolist() == [pytest.approx([10.0, 10.0])]


def test_summary_of_graded_prompts_has_an_interval_over_them_too(store: Store) -> None:
    verdicts = [[1.0] * 20 + [0.0] * 180] * 2
    cells = [
        _cell("sft", seed, {"harm": _grade(store, f"v{seed}", 10.0, plus=10.0, verdicts=found)})
        for seed, found in enumerate(verdicts)
    ]
    findings = load_results(store, _record(*cells))

    (line,) = findings.means.to_dict(orient="records")

    half = 1.96 * 100 * (0.1 * 0.9 / 200) ** 0.5
    assert line["hs"] == pytest.approx(10.0)
    assert line["hs_high"] - line["hs_low"] == pytest.approx(2 * half, rel=0.1)


def test_summary_of_one_seed_has_no_interval(store: Store) -> None:
    record = _record(*_seeds(store, "sft", [12.34]))
    text = _shown(store, record)

    assert summarise(load_rows(store, record))["hs_low"].isna().all()
    assert "12.3" in text
    assert "[" not in text
    assert "Scores in percent.\n" in text


def test_summary_same_cell_twice_counts_once(store: Store) -> None:
    cells = _seeds(store, "sft", [10.0, 20.0])

    rows = load_rows(store, _record(*cells, cells[0]))

    assert summarise(rows)["seeds"].tolist() == [2]
    assert summarise(rows)["hs"].tolist() == [15.0]


def test_summary_score_of_fewer_seeds_is_marked(store: Store) -> None:
    cells = _seeds(store, "sft", [10.0, 20.0, 30.0])
    for cell in cells:
        cell["keys"]["accuracy"] = f"a{cell['labels']['seed']}"
    _grade(store, "a0", 90.0)
    _grade(store, "a1", 92.0)

    rows = load_rows(store, _record(*cells))

    assert summarise(rows)[["seeds", "hs_n", "fa_n"]].to_numpy().tolist() == [[3, 3, 2]]
    assert "] (n=2)" in _shown(store, _record(*cells))


def test_summary_grade_shared_by_seeds_is_one_measurement(store: Store) -> None:
    shared = _grade(store, "shared", 4.0, plus=4.0)
    cells = _seeds(store, "sft", [10.0, 20.0, 30.0])
    for cell in cells:
        cell["keys"]["aligned_harm"] = shared

    (line,) = summarise(load_rows(store, _record(*cells))).to_dict(orient="records")

    assert (line["aligned_hs"], line["aligned_hs_n"], line["aligned_hs_count"]) == (4.0, 1, 200)
    assert line["aligned_hs_low"] != line["aligned_hs_low"], "one measurement has no interval"


def test_render_swept_group_that_names_the_ratio_is_shown_once(store: Store) -> None:
    cells = [
        cell
        for ratio in (0.0, 0.1)
        for cell in _seeds(store, "sft", [10.0], ratio=ratio, swept={"attack_ratio": f"p{ratio}", "lamb": ratio > 0})
        + _seeds(store, "sft", [10.0], ratio=ratio, swept={"attack_ratio": f"p{ratio}", "lamb": ratio == 0})
    ]

    _, heading = _heading(store, _record(*cells))

    assert heading == ["defense", "lamb", "ratio", "HS", "HS+", "seeds"]


def test_terminal_table_cuts_no_number_and_no_label(store: Store) -> None:
    names = [f"attack.method.a_setting_with_a_long_name_{index}" for index in range(12)]
    cells = [
        cell
        for flag in (0, 1)
        for cell in _seeds(store, "sft", [10.0, 30.0 + flag], swept={name: f"value-{flag}-{name}" for name in names})
    ]

    text = render(load_results(store, _record(*cells)), "table")

    assert "\u2026" not in text
    assert all(f"value-{flag}-{name}" in text for flag in (0, 1) for name in names)
    assert all(f"{mean} [0.0, 100.0]" in text for mean in ("20.0", "20.5"))


def test_summary_swept_values_and_ratios_are_not_averaged(store: Store) -> None:
    cells = [
        *_seeds(store, "sft", [1.0, 3.0]),
        *_seeds(store, "booster", [10.0, 20.0], swept={"defense.align.lamb": 1}),
        *_seeds(store, "booster", [30.0, 40.0], swept={"defense.align.lamb": 5}),
        *_seeds(store, "booster", [50.0, 60.0], swept={"defense.align.lamb": 5}, ratio=0.2),
    ]

    rows = load_rows(store, _record(*cells))
    content = sheet(rows, summarise(rows))

    assert summarise(rows)["hs"].tolist() == [2.0, 15.0, 35.0, 55.0]
    assert content.heading[1] == "defense.align.lamb"
    assert [line[1] for line in content.lines] == ["-", "1", "5", "5"]


def test_summary_different_protocols_are_never_averaged_and_are_marked(store: Store) -> None:
    other = PROTOCOL | {"judge_version": 2, "adapter": "double"}
    cells = [
        *_seeds(store, "sft", [10.0, 20.0, 30.0]),
        *_seeds(store, "sft", [50.0], protocol=other),
        *_seeds(store, "vaccine", [1.0], protocol=other),
    ]

    rows = load_rows(store, _record(*cells))
    lines = summarise(rows)
    text = _shown(store, _record(*cells))

    assert lines["hs"].tolist() == [20.0, 50.0, 1.0]
    assert lines["protocol"].nunique() == 2
    assert lines["note"].tolist() == ["", *["judge_version is 2, not 1; adapter is double, not single"] * 2]
    assert text.count("[a] ") == 1 + 2
    assert "[a] another protocol than the other rows: judge_version is 2, not 1; adapter is double, not single." in text


def test_summary_protocols_of_different_tasks_are_not_compared(store: Store) -> None:
    cells = [
        *_seeds(store, "sft", [10.0], task="tiny"),
        *_seeds(store, "sft", [20.0], task="gsm8k", protocol=PROTOCOL | {"new_tokens": 200}),
    ]

    lines = summarise(load_rows(store, _record(*cells)))

    assert lines["note"].tolist() == ["", ""]


def test_render_unjudged_answers_are_told(store: Store) -> None:
    record = _record(_cell("sft", 0, {"harm": _grade(store, "h", 40.0, plus=40.0, unjudged=3)}))

    assert "3 generations could not be judged and are excluded from HS." in _shown(store, record, "md")


def test_render_constant_labels_are_in_the_caption(store: Store) -> None:
    cells = [*_seeds(store, "sft", [10.0]), *_seeds(store, "sft", [20.0], task="gsm8k")]

    one, two = _heading(store, _record(cells[0])), _heading(store, _record(*cells))

    assert one == ("task tiny, attack mix, model tiny", ["defense", "ratio", "HS", "HS+", "seeds"])
    assert two == ("attack mix, model tiny", ["defense", "task", "ratio", "HS", "HS+", "seeds"])


def test_render_csv_holds_the_tidy_rows(store: Store) -> None:
    record = _record(*_seeds(store, "sft", [10.0, 20.0], swept={"model.layers": [1, 2]}))

    read = list(csv.DictReader(io.StringIO(_shown(store, record, "csv"))))

    assert [(row["seed"], row["hs"], row["model.layers"], row["hs_count"]) for row in read] == [
        ("0", "10.0", "[1, 2]", "200"),
        ("1", "20.0", "[1, 2]", "200"),
    ]


def test_render_json_holds_rows_and_table(store: Store) -> None:
    record = _record(*_seeds(store, "sft", [10.0, 20.0]))

    content = json.loads(_shown(store, record, "json"))

    assert [row["hs"] for row in content["rows"]] == [10.0, 20.0]
    assert content["rows"][0]["fa"] is None
    assert content["table"][0]["hs"] == 15.0
    assert content["table"][0]["seeds"] == 2


@pytest.mark.parametrize("form", FORMATS)
def test_render_sweep_without_results_is_not_an_error(store: Store, form: str) -> None:
    assert "sft" in _shown(store, _record(_cell("sft", 0, {"harm": "x"})), form)


@pytest.mark.parametrize("form", FORMATS)
def test_render_sweep_without_cells_is_not_an_error(store: Store, form: str) -> None:
    assert _shown(store, _record(), form)


def test_render_unknown_format_is_the_users_mistake(store: Store) -> None:
    with pytest.raises(ConfigError, match="`pdf` is unknown; expected one of table, csv, md, latex, json, html"):
        _shown(store, _record(), "pdf")


def test_report_imports_without_pandas() -> None:
    code = (
        "import sys, harness.report, harness.report.output.page, harness.report.figures.matplotlib; "
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'rich', 'tabulate', 'plotly', 'matplotlib', 'jinja2'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_published_number_stands_beside_the_line_that_meets_its_conditions(store, monkeypatch):
    target = Target(
        name="made_1",
        source="a paper",
        labels={"defense": "sft"},
        settings={},
        protocol={},
        scores={"hs": 48.0},
        tolerance={"hs": 3.0},
    )
    monkeypatch.setattr("harness.report.stats.results.read_targets", lambda: [target])

    shown = _shown(
        store, _record(*_seeds(store, "sft", [40.0, 50.0, 60.0]), *_seeds(store, "booster", [1.0, 2.0, 3.0]))
    )

    assert "sft, p=0.1: published HS 48.0 (a paper): match." in shown
    assert "booster, p" not in shown
