"""The main job from the command line: a sweep, its repetition, its report, its death and resurrection."""

import csv
import html
import io
import json
import re
import shlex
import shutil
import signal
import time

import pytest
from product import QUICK, TWO_SCORES, Harness


def attempts(harness: Harness) -> dict[str, int]:
    """How often each stage was executed, by key."""
    counts = {}
    for path in (harness.store / "attempts").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        counts[path.stem] = sum(record["outcome"] == "executed" for record in records)
    return counts


def rows(harness: Harness, *arguments: str) -> list[dict[str, str]]:
    """The tidy rows of the latest sweep."""
    done = harness("report", *arguments, "--format", "csv")
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def scores(table: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """What a table says, without keys."""
    return sorted(
        tuple(row[name] for name in ("defense", "ratio", "seed", "hs", "hs_plus", "fa", "aligned_hs", "aligned_fa"))
        for row in table
    )


def both_cells(harness: Harness) -> list[str]:
    """The id of the sweep of all four cells."""
    return [
        path.stem for path in harness.store.glob("sweeps/*.json") if len(json.loads(path.read_text())["cells"]) == 4
    ]


def test_sweep_runs_every_distinct_stage_once_and_prints_a_table(finished):
    counted = attempts(finished)
    table = rows(finished, *both_cells(finished))

    # One base, two alignments, two mixtures, four fine-tunings; three generations and grades for each of six models.
    assert len(counted) == 1 + 2 + 2 + 4 + 18 + 18
    assert set(counted.values()) == {1}
    assert len(table) == 4
    measured = ("hs", "fa", "over_refusal", "aligned_hs", "aligned_over_refusal")
    assert all(not row["missing"] and all(row[name] for name in measured) for row in table)


@pytest.mark.slow
def test_any_folder_holds_a_store_and_a_link_is_the_same_one(finished, tmp_path):
    folder = tmp_path / "wörk dir 日本 ' \" $x;=%"
    folder.mkdir()
    shutil.copytree(finished.store, folder / "möre ✓")
    (folder / "linked").symlink_to("möre ✓")
    harness = Harness(folder)
    shown = finished("report")

    linked, real = harness("report", "--store", "linked"), harness("report", HARNESS_STORE="möre ✓")
    again = harness("-m", "defense=sft,booster", "attack_ratio=p00,p20", "store=linked", *QUICK)

    assert shown.returncode == 0
    assert linked.stdout == real.stdout == shown.stdout
    assert again.returncode == 0, again.stderr
    assert "45 stages, 45 in the store" in again.stdout
    assert list((folder / "möre ✓" / "reports").glob("*/report.json"))


def test_sweep_repeated_executes_nothing_and_says_so(finished):
    before = attempts(finished)

    again = finished("-m", "defense=sft,booster", "attack_ratio=p00,p20", *QUICK)

    assert again.returncode == 0
    assert "nothing to run" in again.stdout
    assert attempts(finished) == before


def test_single_run_of_a_cell_of_the_sweep_is_stored_already(finished, tmp_path):
    shutil.copytree(finished.store, tmp_path / "store")
    own = Harness(tmp_path)

    single = own("defense=booster", "attack_ratio=p20", *QUICK)

    assert single.returncode == 0, single.stderr
    assert "nothing to run" in single.stdout
    assert len(rows(own)) == 1


def test_report_has_the_same_numbers_in_every_format(finished):
    (sweep,) = both_cells(finished)

    markdown = finished("report", sweep, "--format", "md")
    structured = finished("report", sweep, "--format", "json")
    tidy = rows(finished, sweep)

    assert {str(row["hs"]) for row in json.loads(structured.stdout)["rows"]} == {row["hs"] for row in tidy}
    assert all(f"{float(row['hs']):.1f}" in markdown.stdout for row in tidy)
    assert "| defense" in markdown.stdout


@pytest.mark.slow
def test_report_folder_has_a_page_whose_reproduce_lines_name_stored_stages(finished, tmp_path):
    (sweep,) = both_cells(finished)

    written = finished("report", sweep, "--out", str(tmp_path / "out"), "--strict")
    page = (tmp_path / "out" / "index.html").read_text()
    (line, *others) = [html.unescape(found) for found in re.findall(r"<code>(harness -m .*?)</code>", page)]
    plan = finished("plan", *shlex.split(line)[1:], "--json")

    assert written.returncode == 0, written.stderr
    assert "index.html" in written.stdout
    assert len(others) == 3
    assert json.loads(plan.stdout)["cells"] == 1
    assert all(count["stored"] == count["total"] for count in json.loads(plan.stdout)["stages"].values())


def test_manifest_tells_counts_commit_versions_and_cost(finished):
    manifests = [json.loads(path.read_text()) for path in finished.store.glob("artifacts/*/*/manifest.json")]
    poison = [manifest for manifest in manifests if manifest["kind"] == "poison"]
    tuned = [manifest for manifest in manifests if manifest["kind"] == "finetune"]

    assert sorted((m["facts"]["counts"]["harmful"], m["facts"]["counts"]["benign"]) for m in poison) == [
        (0, 40),
        (8, 32),
    ]
    assert all(m["facts"]["attack_and_defense_share"] == {"rows": 0, "prompts": 0} for m in tuned)
    assert all(m["provenance"]["packages"]["torch"] and m["seconds"] >= 0 for m in manifests)


def test_plan_counts_stages_and_runs_nothing(finished):
    before = attempts(finished)

    plan = finished("plan", "-m", "defense=sft,vaccine,booster", "attack_ratio=p00,p20", *QUICK, "--json")

    stages = json.loads(plan.stdout)["stages"]
    assert json.loads(plan.stdout)["cells"] == 6
    assert stages["align"] == {"total": 3, "stored": 2}
    assert stages["finetune"] == {"total": 6, "stored": 4}
    assert attempts(finished) == before


def test_altered_artifact_is_noticed_and_made_again_after_removal(finished, tmp_path):
    shutil.copytree(finished.store, tmp_path / "store")
    harness = Harness(tmp_path)
    adapter = next((tmp_path / "store" / "artifacts" / "finetune").glob("*/adapter/adapter_model.safetensors"))
    damaged = bytearray(adapter.read_bytes())
    damaged[-1] ^= 1
    adapter.write_bytes(damaged)
    key = adapter.parts[-3]
    for grade in (tmp_path / "store" / "artifacts" / "generate").glob("*"):
        shutil.rmtree(grade)

    stages = [path.stem for path in (tmp_path / "store" / "specs").glob("*.json") if key in path.read_text()]
    done = [harness("stage", stage) for stage in stages]

    assert stages
    assert all(run.returncode == 1 and "altered" in run.stdout and "Traceback" not in run.stderr for run in done)


@pytest.mark.slow
def test_killed_sweep_goes_on_and_ends_with_the_numbers_of_an_undisturbed_one(finished, with_base):
    harness = with_base
    cells = ("-m", "defense=sft,booster", "attack_ratio=p00,p20", *TWO_SCORES)
    ended = []
    for _ in range(2):
        before = len(list(harness.store.glob("artifacts/*/*/manifest.json")))
        run = harness.fork(*cells)
        while run.is_running() and len(list(harness.store.glob("artifacts/*/*/manifest.json"))) < before + 5:
            time.sleep(0.02)
        run.kill()
        ended.append(run.end().returncode)

    last = harness(*cells)

    assert ended == [-signal.SIGKILL] * 2
    assert last.returncode == 0, last.stderr
    assert scores(rows(harness)) == scores(rows(finished, *both_cells(finished)))


def test_interrupt_leaves_with_130_and_one_line(harness):
    run = harness.start("-m", "defense=sft", "attack_ratio=p00,p20", *QUICK)
    while not (harness.store / "work").is_dir():
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)

    _, errors = run.communicate(timeout=60)

    assert run.returncode == 130
    assert "Traceback" not in errors
    assert "again to resume" in errors


@pytest.mark.slow
def test_two_overlapping_sweeps_at_once_execute_each_stage_once(with_base):
    harness = with_base
    first = harness.fork("-m", "defense=sft,booster", "attack_ratio=p20", *TWO_SCORES)
    second = harness.fork("-m", "defense=booster,sft", "attack_ratio=p20,p00", *TWO_SCORES)
    ended = [run.end() for run in (first, second)]

    assert [run.returncode for run in ended] == [0, 0], ended
    assert set(attempts(harness).values()) == {1}


PROBE = """
from dataclasses import dataclass
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

@dataclass
class ProbeConf:
    _target_: str = "hydra_plugins.probe_sweeper.Probe"
    max_batch_size: int = 1
    params: dict | None = None

ConfigStore.instance().store(group="hydra/sweeper", name="probe", node=ProbeConf, provider="probe")

class Probe(BasicSweeper):
    def sweep(self, arguments):
        batches = super().sweep(arguments)
        print("OBJECTIVES", [job.return_value for batch in batches for job in batch])
        return batches
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["hs", "fa", "hs + 2*fa_loss"])
def test_multirun_returns_the_objective_to_somebody_elses_sweeper(finished, tmp_path, objective):
    shutil.copytree(finished.store, tmp_path / "store")
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "probe_sweeper.py").write_text(PROBE)
    harness = Harness(tmp_path)

    run = harness(
        "-m", "hydra/sweeper=probe", "defense=sft,booster", "attack_ratio=p20", *QUICK, f"objective='{objective}'",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    table = {row["defense"]: row for row in rows(harness, *both_cells(harness)) if float(row["ratio"]) == 0.2}
    hs, fa = ([float(table[name][score]) for name in ("sft", "booster")] for score in ("hs", "fa"))
    expected = {"hs": hs, "fa": fa, "hs + 2*fa_loss": [h + 2 * (100 - f) for h, f in zip(hs, fa, strict=True)]}

    assert run.returncode == 0, run.stderr
    assert hs[0] > 0, "a sweep in which nothing is harmful shows nothing"
    assert f"OBJECTIVES {expected[objective]}" in run.stdout
