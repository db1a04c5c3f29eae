"""What a report says about the fidelity of its methods is what their headers say."""

import json
from dataclasses import replace
from textwrap import dedent

import pytest

from harness.engine.statement import statement_in
from harness.report.data.fidelity import Fidelity, fidelities
from harness.report.data.stage_records import StageRecord
from harness.report.output.formats import render

LISA = {"_target_": "defense/lisa@1", "rho": 1.0}


def record(key, **spec):
    return StageRecord(key=key, kind="finetune", uses=1, spec=spec)


def test_statement_is_the_paragraph_of_the_header():
    header = dedent("""
        A method.

        Fidelity: hand-computed only. The numbers of ``alpha``
        are ours.

        Anything else.
    """)

    assert statement_in(header) == "hand-computed only. The numbers of alpha are ours."
    assert statement_in("A method.\n\nFidelity: at the end.") == "at the end."
    assert statement_in("No word of Fidelity: here.") == statement_in(None) == ""


def test_methods_are_found_wherever_a_spec_has_them_each_once():
    nested = {"_target_": "stage/finetune@1", "parts": [{"method": LISA}], "budget": {"_target_": "settings/budget@1"}}
    own = {"_target_": "somebody.elses.Method"}

    found = fidelities([record("a", stage=nested), record("b", method=LISA), record("c", method=own), record("d")])

    (only,) = found
    assert only.method == "lisa"
    assert only.statement.startswith("parity with the authors' vectors")


@pytest.mark.parametrize(("stated", "shown"), [("Ours.", "Ours."), ("", "not stated.")])
def test_method_of_another_package_states_what_its_manifest_has(stated, shown):
    described = {"name": "mine", "version": 2, "code": "0f", "fidelity": stated}
    own = record("a", method={"_target_": "lab.mine.Mine"})
    own = replace(own, provenance={"classes": {"lab.mine.Mine": described, "lab.judge.Judge": described}})

    assert fidelities([own, replace(own, key="b"), record("c", method=LISA)])[1:] == (
        Fidelity("mine (lab.mine.Mine)", 2, shown),
    )


def test_version_that_is_not_installed_is_unknown():
    (found,) = fidelities([record("a", method={"_target_": "defense/lisa@999"})])

    assert found == Fidelity("lisa", 999, "unknown: version 999 is not installed.")


@pytest.mark.parametrize("format", ["md", "html", "json"])
def test_reports_state_it(findings, monkeypatch, format):
    assert "parity with the authors" not in render(findings, format)
    evidence = (Fidelity("lisa", 1, "parity with the authors <vectors>."),)
    monkeypatch.setattr("harness.report.stats.results.fidelities", lambda records: evidence)

    text = render(replace(findings), format)

    assert {"md": r"- lisa: parity with the authors", "html": "<td>parity with the authors &lt;vectors&gt;.</td>"}.get(
        format, "parity with the authors <vectors>."
    ) in text
    if format == "json":
        assert json.loads(text)["fidelity"] == [evidence[0]._asdict()]
