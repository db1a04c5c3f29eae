"""A store that an earlier version wrote is read, reported, mended and continued."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from product import QUICK, Harness

PATHS = json.loads((Path(__file__).parents[1] / "golden" / "paths.json").read_text())
LATER_FIELDS = ("marker", "micro_batch_size", "scaling", "variant")
"""Settings that the earlier version did not have; what they are by default adds nothing to a key."""


def earlier(value):
    """The same data with classes by their first import path, and without the settings that came later."""
    if isinstance(value, list):
        return [earlier(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: earlier(item) for name, item in value.items() if name not in LATER_FIELDS or item is not None}
    if "_target_" in kept:
        kept["_target_"] = PATHS[kept["_target_"].partition("@")[0]][0]
    return kept


def set_back(path: Path) -> None:
    path.write_text(json.dumps(earlier(json.loads(path.read_text())), indent=2) + "\n")


@pytest.fixture
def old(finished, tmp_path):
    """A copy of the finished sweep in the form of the earlier version."""
    shutil.copytree(finished.store, tmp_path / "store")
    for path in [*tmp_path.glob("store/specs/*.json"), *tmp_path.glob("store/sweeps/*.json")]:
        set_back(path)
    for path in tmp_path.glob("store/artifacts/*/*/spec.json"):
        set_back(path)
        manifest = json.loads(path.with_name("manifest.json").read_text())
        content = path.read_bytes()
        manifest["files"]["spec.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        path.with_name("manifest.json").write_text(json.dumps(manifest))
    assert not [path for path in tmp_path.glob("store/s*/*.json") if '"stage/' in path.read_text()]
    assert [path for path in tmp_path.glob("store/s*/*.json") if '"harness.' in path.read_text()]
    return Harness(tmp_path)


def executed(harness: Harness) -> list[str]:
    """The kinds of the stages that were executed, once for each time."""
    lines = [line for path in harness.store.glob("attempts/*.jsonl") for line in path.read_text().splitlines()]
    return sorted(attempt["kind"] for attempt in map(json.loads, lines) if attempt["outcome"] == "executed")


def four_cells(harness: Harness) -> str:
    (sweep,) = (
        path.stem for path in harness.store.glob("sweeps/*.json") if len(json.loads(path.read_text())["cells"]) == 4
    )
    return sweep


@pytest.mark.slow
def test_report_and_status_of_an_earlier_store_are_those_of_the_present_one(finished, old):
    sweep = four_cells(old)

    for command in (("report", sweep, "--format", "csv"), ("status", sweep)):
        before, now = finished(*command), old(*command)
        assert now.returncode == 0, now.stderr
        assert now.stdout == before.stdout


@pytest.mark.slow
def test_command_repeated_on_an_earlier_store_executes_nothing_and_writes_its_specs_anew(finished, old):
    before = executed(old)

    again = old("-m", "defense=sft,booster", "attack_ratio=p00,p20", *QUICK)

    assert again.returncode == 0, again.stderr
    assert "nothing to run" in again.stdout
    assert executed(old) == before
    for path in old.store.glob("specs/*.json"):
        assert json.loads(path.read_text()) == json.loads((finished.store / "specs" / path.name).read_text())


@pytest.mark.slow
def test_retry_in_an_earlier_store_runs_the_failed_stage_alone(old):
    before = executed(old)
    lost = next(old.store.glob("artifacts/grade/*"))
    shutil.rmtree(lost)
    attempts = old.store / "attempts" / f"{lost.name}.jsonl"
    (line,) = attempts.read_text().splitlines()
    failure = {"outcome": "failed", "cause": "OSError", "message": "no space left", "traceback": "Traceback"}
    attempts.write_text(json.dumps(json.loads(line) | failure) + "\n")
    before.remove("grade")

    again = old("retry", four_cells(old))

    assert again.returncode == 0, again.stderr
    assert executed(old) == sorted([*before, "grade"])
    assert (lost / "manifest.json").exists()


@pytest.mark.slow
def test_sweep_that_extends_an_earlier_store_trains_on_what_it_has(old):
    before = executed(old)

    more = old("defense=sft", "attack_ratio=p10", *QUICK)

    assert more.returncode == 0, more.stderr
    assert executed(old) == sorted([*before, "poison", "finetune", *["generate"] * 3, *["grade"] * 3])
