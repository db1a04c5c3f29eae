"""What figures show of sweeps that are unfinished, of several protocols, or of settings that are called alike."""

import json
from collections.abc import Callable
from itertools import pairwise, product
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from fabricated import HARM, Fabricator

from harness.report.figures.catalog import category_views, comparison_views, cost_views, figure_catalog, ratio_views
from harness.report.figures.curves import training_views
from harness.report.figures.plotly import chart
from harness.report.figures.spec import Grid, Lines, Point, Points, Series
from harness.report.figures.style import styles_of
from harness.report.figures.tradeoff import robust_regions, sensitivity_views, surface_views, trade_off_views
from harness.report.output.page import page
from harness.report.stats.aggregate import by_defense
from harness.report.stats.results import Results, load_results

LAMB, ALPHA = "defense.align.lamb", "defense.align.alpha"

Cells = list[dict[str, Any]]


@pytest.fixture
def maker(tmp_path: Path) -> Fabricator:
    return Fabricator(tmp_path / "store", prompts=60, answers=60)


def _found(maker: Fabricator, cells: Cells, **more: Any) -> Results:
    return load_results(maker.store, maker.sweep(cells, **more))


def _unfinished(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell before its answers are graded."""
    return cell | {"keys": cell["keys"] | {"harm": "none", "accuracy": "none"}}


def _departing(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {"protocol": cell["protocol"] | {"judge.version": 2}}


def _grid(maker: Fabricator, unfinished: Callable[[dict[str, Any], float], bool]) -> Cells:
    """Booster over lambda and alpha at two ratios; some cells are not graded yet."""
    cells = []
    for lamb in (1.0, 2.0, 5.0):
        for alpha in (0.1, 0.3):
            for ratio in (0.0, 0.2):
                settings = {LAMB: lamb, ALPHA: alpha}
                cell = maker.cell("booster", ratio, 0, settings)
                cells.append(_unfinished(cell) if unfinished(settings, ratio) else cell)
    return cells


def _line(findings: Results, **names: Any) -> Any:
    means = findings.means
    for name, found in names.items():
        means = means[means[{"lamb": LAMB, "alpha": ALPHA}.get(name, name)] == found]
    (line,) = means.to_dict(orient="records")
    return line


def test_robust_region_setting_without_its_hard_cells_is_not_in_it(maker):
    findings = _found(maker, _grid(maker, lambda settings, ratio: settings[LAMB] == 5.0 and ratio == 0.2))

    (region,) = robust_regions(findings)

    assert region.settings == 4
    assert "lamb 5" not in region.best
    assert "lamb 1 to 2" in region.reach or "lamb 2 to 2" in region.reach or "lamb 1 to 1" in region.reach
    assert region.remark == "2 of 6 settings incomplete."


def test_surface_setting_without_its_hard_cells_is_blank_and_told(maker):
    findings = _found(maker, _grid(maker, lambda settings, ratio: settings[LAMB] == 5.0 and ratio == 0.2))

    (view,) = [each for each in surface_views(findings) if each.name == "surface-booster-lamb-alpha-hs"]

    assert view.x == ["1", "2", "5"]
    assert [view.texts(row)[2] for row in (0, 1)] == ["", ""]
    assert not any(row[2] for row in view.marked)
    expected = [_line(findings, lamb=1.0, alpha=0.1, ratio=ratio)["hs"] for ratio in (0.0, 0.2)]
    assert view.values[0][0] == pytest.approx(sum(expected) / 2)
    assert "2 of 6 settings incomplete." in view.alternative


def test_surface_over_a_pair_averages_only_third_values_that_all_have(maker):
    third = "finetune.budget.epochs"
    cells = [
        maker.cell("booster", 0.2, 0, {LAMB: lamb, ALPHA: alpha, third: epochs})
        for lamb, alpha, epochs in ((1.0, 0.1, 5), (5.0, 0.1, 5), (1.0, 0.3, 5), (1.0, 0.1, 20))
    ]
    findings = _found(maker, cells)

    (view,) = [each for each in surface_views(findings) if each.name == "surface-booster-lamb-alpha-hs"]
    (moves,) = sensitivity_views(findings)

    means = findings.means
    assert view.values[0][0] == pytest.approx(means["hs"].iloc[0])
    assert moves.labels == ["booster: lamb", "booster: alpha", "booster: epochs"]
    assert list(moves.parts[0].x) == pytest.approx([abs(means["hs"].iloc[n] - means["hs"].iloc[0]) for n in (1, 2, 3)])


def test_surface_setting_that_is_unset_is_one_of_its_values(maker):
    norm = "finetune.budget.max_grad_norm"
    cells = [maker.cell("booster", 0.2, 0, {LAMB: lamb, norm: found}) for lamb in (1.0, 5.0) for found in (None, 2.0)]
    findings = _found(maker, cells)

    (view,) = [each for each in surface_views(findings) if each.name.endswith("-hs")]

    assert sorted([view.x, view.y]) == [["1", "5"], ["2", "-"]]
    assert all(all(view.texts(row)) for row in range(2))
    assert robust_regions(findings)[0].settings == 4


def test_surface_attack_ratio_is_no_setting_of_the_robust_region(maker):
    views = surface_views(_found(maker, _grid(maker, lambda settings, ratio: False)))

    assert {view.name: any(map(any, view.marked)) for view in views if view.name.endswith("-hs")} == {
        "surface-booster-lamb-alpha-hs": True,
        "surface-booster-lamb-ratio-hs": False,
        "surface-booster-alpha-ratio-hs": False,
    }


def test_sensitivity_is_of_combinations_that_every_value_has(maker):
    cells = _grid(maker, lambda settings, ratio: settings == {LAMB: 5.0, ALPHA: 0.3} and ratio == 0.2)
    findings = _found(maker, cells)

    (view,) = sensitivity_views(findings)

    both = [
        sum(_line(findings, lamb=lamb, alpha=0.1, ratio=ratio)["hs"] for ratio in (0.0, 0.2)) / 2
        for lamb in (1.0, 2.0, 5.0)
    ]
    assert view.parts[0].x[0] == pytest.approx(max(both) - min(both))
    assert "1 of 6 settings incomplete." in view.alternative


def test_categories_are_means_over_the_same_ratios(maker):
    cells = [maker.cell(defense, ratio, 0, {}) for defense in ("sft", "vaccine", "booster") for ratio in (0.0, 0.2)]
    cells[-1] = _unfinished(cells[-1])
    findings = _found(maker, cells)

    (view,) = category_views(findings)

    assert view.x == ["sft", "vaccine"]
    assert view.values[0][0] == pytest.approx(findings.rows["category.category_0"].iloc[:2].mean())
    assert "1 of 3 settings incomplete." in view.alternative


def test_page_of_unmeasured_values_is_json_that_a_browser_reads(maker):
    cells = [maker.cell("booster", 0.0, 0, {LAMB: lamb}) for lamb in (1.0, 2.0, 5.0)]
    cells[2] = _unfinished(cells[2])
    for cell in cells:
        cell["keys"]["accuracy"] = "none"
    findings = _found(maker, [maker.cell("sft", 0.0, 0, {}), *cells])

    text = page(findings).partition('id="charts">')[2].partition("</script>")[0]

    def refuse(constant: str) -> None:
        pytest.fail(f"JSON.parse knows no {constant}")

    assert "ratio-0-hs" in json.loads(text, parse_constant=refuse)


def test_names_of_lines_under_another_protocol_have_its_letter_in_every_figure(maker):
    places = [(defense, ratio) for defense in ("sft", "booster") for ratio in (0.0, 0.2)]
    cells = [maker.cell(*place, 0, {}) for place in places]
    again = [_departing(maker.cell(*place, 0, {"": "again"}) | {"swept": {}}) for place in (*places[2:], places[0])]
    findings = _found(maker, [*cells, *again])
    names = ["sft", "booster", "booster [a]", "sft [a]"]

    ratios, trade_off = ratio_views(findings)[0], trade_off_views(findings)[0]

    assert [series.name for series in ratios.series] == names
    assert [point.name for point in trade_off.points] == names[:3]
    assert "booster [a] against sft [a], p=0" in comparison_views(findings)[0].labels


def test_curves_are_named_by_what_their_stages_depend_on(maker):
    """A second judge of the same answers makes no second curve; a second number of rows does."""
    cells = [maker.cell(defense, 0.2, 0, {}) | {"swept": {"judge": "one"}} for defense in ("sft", "booster")]
    graded_again = [_departing(cell) | {"swept": {"judge": "two"}} for cell in cells]
    fewer = maker.cell("booster", 0.2, 0, {"finetune.rows": 7})
    fewer = _departing(fewer) | {"swept": {"judge": "two", "finetune.rows": 7}}

    again, further = _found(maker, cells + graded_again), _found(maker, [*cells, *graded_again, fewer])

    assert {tuple(series.name for series in view.series) for view in training_views(again)} == {("sft", "booster")}
    lines = next(view for view in training_views(further) if view.name == "curve-finetune-0.2-loss")
    assert [series.name for series in lines.series] == ["sft", "booster", "booster (rows 7)"]


def test_setting_that_acts_at_some_ratios_only_names_curves_at_those(maker):
    benign = [maker.cell("sft", 0.0, 0, {}) | {"swept": {"attack.trigger": word}} for word in ("one", "two")]
    attacked = [maker.cell("sft", 0.2, 0, {"attack.trigger": word}) for word in ("one", "two")]
    findings = _found(maker, [*benign, *attacked])

    names = {view.name: [series.name for series in view.series] for view in training_views(findings)}

    assert names["curve-finetune-0-loss"] == ["sft"]
    assert names["curve-finetune-0.2-loss"] == ["sft (trigger one)", "sft (trigger two)"]


def _judged_twice(maker: Fabricator) -> Cells:
    """The same answers under two judges: what only one of them grades is shared."""
    cells = []
    for defense, ratio in product(("sft", "booster"), (0.0, 0.2)):
        first, second = (maker.cell(defense, ratio, 0, {"judge": judge}) for judge in ("one", "two"))
        cells += [first, _departing(second | {"keys": first["keys"] | {"harm": second["keys"]["harm"]}})]
    return cells


def test_scores_that_two_judges_share_are_drawn_once(maker):
    findings = _found(maker, _judged_twice(maker))

    names = {view.y_title: [series.name for series in view.series] for view in ratio_views(findings)}

    assert names["FA (%)"] == ["sft", "booster"]
    assert names["HS (%)"] == [
        "sft (judge one)",
        "sft (judge two) [a]",
        "booster (judge one)",
        "booster (judge two) [a]",
    ]


def test_differences_that_two_judges_share_are_drawn_once(maker):
    findings = _found(maker, _judged_twice(maker))

    labels = {view.name: list(view.labels) for view in comparison_views(findings)}

    assert labels["difference-fa"] == ["booster, p=0", "booster, p=0.2"]
    assert len(labels["difference-hs"]) == 4


def test_differences_under_two_attacks_are_two_even_where_nothing_is_attacked(maker):
    cells = [maker.cell(defense, 0.0, 0, {}) for defense in ("sft", "booster")]
    both = [cell | {"labels": cell["labels"] | {"attack": attack}} for cell in cells for attack in ("x", "y")]

    (harm, *_) = comparison_views(_found(maker, both))

    assert harm.labels == ["booster, p=0, x", "booster, p=0, y"]


def test_point_of_another_judge_is_called_by_its_name(maker):
    findings = _found(maker, _judged_twice(maker))

    names = list(trade_off_views(findings)[0].grouped())

    assert names == ["sft (judge one)", "sft (judge two) [a]", "booster (judge one)", "booster (judge two) [a]"]


def test_no_group_of_points_takes_the_place_of_another():
    def point(name: str, *, usual: bool) -> Point:
        return Point(name=name, defense="booster", x=(1, 1, 1), y=(1, 1, 1), usual=usual, on_front=False)

    points = [*(point(f"booster (lamb {lamb}) [a]", usual=True) for lamb in (1, 5)), point("booster", usual=False)]
    view = Points(name="", title="", x_title="", y_title="", alternative="", points=points)

    assert {name: len(found) for name, found in view.grouped().items()} == {"booster": 2, "booster, other protocol": 1}


def test_lines_of_one_defense_differ_in_their_markers(maker):
    findings = _found(maker, _judged_twice(maker))
    (lines, *_), styles = ratio_views(findings), styles_of(findings.rows["defense"])

    traces = chart(lines, styles)["data"]

    assert [trace["marker"]["symbol"] for trace in traces] == ["circle", "circle-open", "square", "square-open"]


def test_front_is_of_one_protocol(maker):
    cells = [maker.cell(defense, 0.2, 0, {}) for defense in ("sft", "vaccine", "booster")]
    findings = _found(maker, [*cells[:2], _departing(cells[2])])

    view = trade_off_views(findings)[0]

    assert [point.usual for point in view.points] == [True, True, False]
    assert any(point.on_front for point in view.points[:2]), "what is not on the front cannot beat what is"
    assert not view.points[2].on_front
    assert "Under another protocol and therefore excluded: booster [a]." in view.alternative
    traces = chart(view, styles_of(findings.rows["defense"]))["data"]
    assert {trace["name"]: trace["marker"]["symbol"] for trace in traces[1:]} == {
        "sft": "circle",
        "vaccine": "square",
        "booster [a]": "diamond-open",
    }


@pytest.mark.slow
def test_surfaces_of_a_defense_are_of_one_protocol(maker):
    cells = _grid(maker, lambda settings, ratio: False)
    alone = _found(maker, cells)
    both = _found(
        maker, [*cells, *(_departing(maker.cell("booster", 0.2, 9, {LAMB: 1.0, ALPHA: a})) for a in (0.1, 0.3))]
    )

    first, second = surface_views(alone)[0], surface_views(both)[0]

    assert second.values == first.values
    assert "2 conditions of booster under another protocol are left out." in second.alternative
    assert [region.best for region in robust_regions(both)] == [region.best for region in robust_regions(alone)]
    assert "2 conditions of booster under another protocol are left out." in category_views(both)[0].alternative


def test_means_of_a_defense_half_under_another_protocol_are_of_the_usual_one(maker):
    cells = [maker.cell("booster", 0.2, 0, {LAMB: lamb}) for lamb in (1.0, 5.0)]
    others = [_departing(cell) for cell in cells]
    findings = _found(maker, [*others, maker.cell("sft", 0.2, 0, {}), *cells])

    booster, _ = by_defense(findings)

    assert (booster.name, list(booster.means.index), booster.left_out) == ("booster", [3, 4], 2)


def test_figures_of_settings_with_the_same_last_word_are_told_apart(maker):
    align, tune = "align.budget.epochs", "finetune.budget.epochs"
    cells = [
        maker.cell("booster", 0.1, 0, {align: first, tune: second, LAMB: lamb})
        for first in (5, 20)
        for second in (5, 20)
        for lamb in (1.0, 2.0)
    ]

    views = figure_catalog(_found(maker, cells))

    names = [view.name for view in views["surface"]]
    assert "surface-booster-align.budget.epochs-finetune.budget.epochs-hs" in names
    assert len([name for name in names if name.startswith("surface-")]) == 6
    (moves,) = [view for view in views["surface"] if view.name == "sensitivity"]
    assert moves.labels == ["booster: align.budget.epochs", "booster: finetune.budget.epochs", "booster: lamb"]


def test_grid_prints_a_half_as_the_table_does():
    view = Grid(
        name="g", title="", x_title="", y_title="", alternative="", x=["1", "2"], y=["1"],
        values=[[1.25, float("nan")]], marked=[[False, False]], defense="sft",
    )  # fmt: skip

    (heat,) = chart(view, styles_of(["sft"]))["data"]

    assert heat["text"] == [["1.2", ""]]
    assert heat["z"] == [[1.25, None]]
    assert "%{z" not in heat["texttemplate"] + heat["hovertemplate"]


@pytest.mark.parametrize("ratios", [(0.0, 0.05, 0.1, 0.15, 0.2), (0.0, 0.01), (0.0, 0.1, 0.2)])
@pytest.mark.parametrize("count", [2, 6, 30])
def test_shifted_points_stay_at_their_ratio(ratios, count):
    series = [Series(name=str(n), defense=str(n), x=ratios, y=[1.0] * len(ratios)) for n in range(count)]
    lines = Lines(name="l", title="", x_title="", y_title="", alternative="", series=series)
    gap = min(after - before for before, after in pairwise(ratios))

    drawn = [lines.shifted(number) for number in range(count)]

    apart = [abs(found - ratio) for each in drawn for found, ratio in zip(each, ratios, strict=True)]
    assert max(apart) <= gap / 6 + 1e-12
    assert len({each[0] for each in drawn}) == count


def test_line_has_a_gap_where_a_ratio_is_missing(maker):
    cells = [maker.cell("sft", ratio, 0, {}) for ratio in (0.0, 0.1, 0.2)]
    cells += [maker.cell("vaccine", ratio, 0, {}) for ratio in (0.0, 0.2)]
    cells += [maker.cell("booster", ratio, 0, {}) for ratio in (0.0, 0.1)]

    view = next(view for view in ratio_views(_found(maker, cells)) if view.name == "ratio-0-hs")

    lines = {series.name: series for series in view.series}
    assert [isnan(value) for value in lines["vaccine"].y] == [False, True, False]
    assert list(lines["booster"].x) == [0.0, 0.1]
    assert "without intervals, of one seed" in view.alternative


def test_comparisons_that_are_not_drawn_are_counted_and_tested(maker, monkeypatch):
    monkeypatch.setattr("harness.report.figures.catalog.COMPARED", 1)
    monkeypatch.setitem(HARM, "booster", 0.02)
    monkeypatch.setitem(HARM, "sft", 0.6)
    cells = [maker.cell(defense, 0.0, seed, {}) for defense in ("sft", "vaccine", "booster") for seed in range(3)]

    view = next(view for view in comparison_views(_found(maker, cells)) if view.name == "difference-hs")

    assert len(view.labels) == 1
    assert view.title.endswith(", the first 1 of 2")
    assert "booster" in view.alternative.partition("significant after Holm")[2]


def test_differences_of_one_seed_are_not_said_to_be_tested(maker):
    view = comparison_views(_found(maker, [maker.cell(name, 0.1, 0, {}) for name in ("sft", "vaccine")]))[0]

    assert "without intervals, of one seed; not tested, with one seed" in view.alternative


def test_lines_at_a_single_ratio_stand_beside_each_other():
    series = [Series(name=name, defense=name, x=[0.1], y=[50.0]) for name in "abc"]
    view = Lines(name="r", title="", x_title="", y_title="", alternative="", series=series)

    places = [view.shifted(number)[0] for number in range(3)]

    assert places[1] == pytest.approx(0.1)
    assert places[0] < places[1] < places[2]


def test_cost_figure_has_no_bar_for_what_was_not_predicted(maker):
    findings = _found(maker, [maker.cell("sft", 0.1, 0, {})], predicted={"finetune": 500.0})

    (view,) = cost_views(findings)

    (predicted,) = [part for part in view.parts if part.name == "predicted"]
    assert [view.labels[int(place)] for place in predicted.y] == ["finetune"]
    assert predicted.x == [500.0 / 3600]
