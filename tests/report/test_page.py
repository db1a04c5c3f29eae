"""The page in a browser without network, and its parts without one."""

import json
import re
from pathlib import Path

import plotly.graph_objects
import pytest
from fabricated import Fabricator

from harness.report import report
from harness.report.figures.catalog import figure_catalog
from harness.report.output.page import page, reproduce

DRAWN = """
const done = arguments[arguments.length - 1];
const places = [...document.querySelectorAll('.drawing')];
const step = () => {
  const waiting = places.find((place) => !place.querySelector('.plot-container'));
  if (!waiting) return done(places.length);
  waiting.scrollIntoView();
  setTimeout(step, 100);
};
step();
"""
"""Scrolls until every figure is drawn: the page draws what comes near."""

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(browser, written):
    browser.get((written / "index.html").as_uri())
    return browser


def test_page_draws_every_figure_without_network_or_console_error(opened):
    figures = opened.execute_async_script(DRAWN)

    assert figures >= 6
    assert opened.get_log("browser") == []
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_page_every_figure_has_a_text_alternative(opened):
    told = opened.execute_script(
        "return [...document.querySelectorAll('.drawing')].map((d) => [d.getAttribute('role'), d.ariaLabel])"
    )

    assert told
    assert all(role == "img" and len(label) > 20 for role, label in told)


def test_page_filter_hides_rows_and_traces(opened):
    opened.execute_async_script(DRAWN)
    visible = "return [...document.querySelectorAll('#lines tbody tr')].filter((r) => !r.hidden).map((r) => r.dataset)"
    before = opened.execute_script(visible)

    opened.execute_script("document.querySelector('[data-filter=defense] input[value=booster]').click()")
    after = opened.execute_script(visible)
    traces = opened.execute_script(
        "return document.querySelector('#scores .drawing').data.filter((t) => t.visible !== false).map((t) => t.name)"
    )

    assert {row["defense"] for row in before} == {"sft", "vaccine", "booster"}
    assert {row["defense"] for row in after} == {"sft", "vaccine"}
    assert traces == ["sft", "vaccine"]
    assert opened.execute_script("return document.getElementById('shown').textContent") == "4 of 12 lines shown"


def test_page_filter_hides_rings_and_fronts_of_what_is_hidden(opened):
    opened.execute_async_script(DRAWN)
    opened.execute_script(
        "const chooser = [...document.querySelectorAll('.chooser')]"
        ".find((each) => [...each.options].some((option) => option.value.startsWith('surface-')));"
        "chooser.value = 'surface-booster-lamb-alpha-hs'; chooser.dispatchEvent(new Event('change'))"
    )
    visible = """
        return [...document.querySelectorAll('#surface .drawing')].slice(0, 2).map((place) =>
            place.data.filter((trace) => trace.visible !== false).map((trace) => trace.name ?? trace.type))
    """
    before = opened.execute_script(visible)

    opened.execute_script("document.querySelector('[data-filter=defense] input[value=booster]').click()")

    assert before == [["front", "sft", "vaccine", "booster"], ["heatmap", "robust region"]]
    assert opened.execute_script(visible) == [["sft", "vaccine"], []]


def test_page_fits_a_phone(browser, written):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get((written / "index.html").as_uri())
        browser.execute_async_script(DRAWN)

        wide = browser.execute_script("return document.documentElement.scrollWidth")
        out = browser.execute_script(
            "return [...document.querySelectorAll('.chart')].filter((card) => [...card.querySelectorAll('.main-svg')]"
            ".some((svg) => svg.getBoundingClientRect().right > card.getBoundingClientRect().right)).length"
        )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    assert wide == 390
    assert out == 0


def test_page_chooser_shows_another_figure_and_its_alternative(opened):
    opened.execute_async_script(DRAWN)
    text = "return document.querySelector('#surface .drawing').ariaLabel"
    before = opened.execute_script(text)

    opened.execute_script(
        "const chooser = document.querySelector('#surface .chooser');"
        "chooser.selectedIndex = 1; chooser.dispatchEvent(new Event('change'))"
    )

    assert opened.execute_script(text) != before
    assert opened.get_log("browser") == []


def test_page_folds_harmful_answers_away(opened):
    folded = opened.execute_script(
        "return [...document.querySelectorAll('.folded')].map((d) => [d.open, d.querySelector('summary').textContent])"
    )

    assert folded
    assert all(not is_open and text.startswith("harmful") for is_open, text in folded)


def test_page_has_answers_only_when_asked_and_never_as_markup(written, findings):
    with_answers, without = (written / "index.html").read_text(), page(findings)

    assert "answer 1 &lt;b&gt;of&lt;/b&gt; said-sft" in with_answers
    assert "answer 1" not in without
    assert 'id="answers"' not in without


def test_page_shows_markup_in_a_swept_value_as_text(tmp_path):
    maker = Fabricator(tmp_path / "store", prompts=20, answers=20)
    attack = "</script><script>alert(1)</script>"
    cells = [maker.cell("sft", 0.1, 0, {"task.instruction": text}) for text in ("one", "two")]
    cells[0] |= {"swept": {"task.instruction": attack}, "overrides": ["defense=sft", f"task.instruction='{attack}'"]}
    maker.sweep(cells)

    text = report(maker.store.root, None, "html")

    assert "alert(1)" in text
    assert "<script>alert(1)" not in text


def test_page_holds_plotly_once_and_stays_small_for_100_cells(tmp_path):
    maker = Fabricator(tmp_path / "store", prompts=40, answers=30)
    cells = len(maker.grid([1.0, 2.0, 5.0], [0.05, 0.1], [0.0, 0.1, 0.2, 0.3], 3)["cells"])

    text = report(maker.store.root, None, "html")

    assert cells == 96
    assert len(text.encode()) <= 5e6
    assert text.count('id="plotly"') == 1
    assert "http://" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_page_charts_are_figures_that_plotly_accepts(written):
    text = (written / "index.html").read_text()
    (found,) = re.findall(r'id="charts">(.*?)</script>', text, flags=re.DOTALL)

    def refuse(constant: str) -> None:
        pytest.fail(f"JSON.parse knows no {constant}")

    for chart in json.loads(found, parse_constant=refuse).values():
        plotly.graph_objects.Figure({"data": chart["data"], "layout": chart["layout"]})


def test_page_reproduces_a_cell_with_its_overrides():
    assert reproduce({"overrides": ["defense=sft", "seed=range(1,3)"]}) == "harness -m defense=sft 'seed=range(1,3)'"
    flags = ["--config-dir", "/lab/my conf"]
    assert reproduce({"overrides": ["seed=1"], "flags": flags}) == "harness --config-dir '/lab/my conf' -m seed=1"
    assert reproduce({}) == ""


def test_gallery_has_a_figure_for_everything_that_was_swept(findings):
    views = figure_catalog(findings)
    names = {view.name for found in views.values() for view in found}

    assert {"ratio-0-hs", "trade-off-0-average", "surface-booster-lamb-alpha-hs", "sensitivity"} <= names
    assert {"difference-hs", "curve-align-loss", "curve-finetune-0.2-loss", "categories", "cost"} <= names
    assert all(view.alternative for found in views.values() for view in found)


def test_files_are_all_formats_and_each_figure_twice(written: Path):
    names = {path.name for path in written.iterdir()}
    figures = sorted(path.name for path in (written / "figures").iterdir())

    assert names == {"table.txt", "table.md", "table.tex", "rows.csv", "report.json", "index.html", "figures"}
    assert len(figures) >= 20
    assert {name.removesuffix(".pdf") for name in figures if name.endswith(".pdf")} == {
        name.removesuffix(".png") for name in figures if name.endswith(".png")
    }
