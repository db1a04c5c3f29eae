"""The ledger: which job was given which stages."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.slurm.client import Queued
from harness.slurm.job_log import LEFT, NAME, JobEntry, JobLog, OrphanJob


@pytest.fixture
def ledger(root):
    return JobLog(root)


def entry(job, *keys, **settings):
    return JobEntry(job=job, keys=keys, user="me", **settings)


def test_entries_are_read_as_they_were_written_oldest_first(ledger):
    first = entry("1", "a", "b", shrink={"a": 2}, excluded=("n1",))
    second, third = entry("2_0", "c"), entry("2_1", "d")
    folder = ledger.open("one")
    ledger.write(folder, [first])
    ledger.write(folder, [second, third])

    assert list(ledger.entries("one")) == [first, second, third]
    assert len((folder / NAME).read_text().splitlines()) == 2


def test_last_job_of_a_stage_is_that_of_the_last_submission_whatever_the_sweep(ledger):
    for sweep, job in (("b", "1"), ("a", "2")):
        ledger.write(ledger.open(sweep), [entry(job, "x")])

    assert ledger.latest()["x"].job == "2"
    assert [one.job for one in ledger.entries("b")] == ["1"]


def test_sweeps_are_those_that_submitted_and_were_not_cancelled(ledger):
    ledger.write(ledger.open("one"), [entry("1", "a")])
    ledger.write(ledger.open("two"), [entry("2", "b")])
    ledger.open("rehearsed", dry_run=True)
    ledger.cancel("two")

    assert ledger.sweeps() == ["one"]
    ledger.cancel("two", undo=True)
    assert ledger.sweeps() == ["one", "two"]


def test_cancel_is_undone_only_for_the_sweep(ledger):
    ledger.cancel("one")
    ledger.cancel("two", undo=True)

    assert ledger.cancelled("one")
    assert not ledger.cancelled("two")


def test_log_is_where_the_scheduler_writes_it(root):
    assert entry("5_1", "a", folder="jobs/s/1").log(root, "out") == root / "jobs/s/1/5_1_0_log.out"


def test_ledger_of_an_empty_store_is_empty(ledger):
    assert ledger.latest() == {}
    assert ledger.sweeps() == []


def test_line_that_a_full_disk_cut_is_left_out(ledger):
    folder = ledger.open("one")
    ledger.write(folder, [entry("1", "a")])
    with (folder / NAME).open("a") as stream:
        stream.write('[{"job": "2", "ke')

    assert [one.job for one in ledger.entries()] == ["1"]

    ledger.write(folder, [entry("3", "a")])
    ledger.write(folder, [entry("4", "a")])

    assert [one.job for one in ledger.entries()] == ["1", "3", "4"]


def damaged_line(kind):
    return {
        "cut": b'[{"job": "12"\n',
        "zeros": b'[{"job": "2", "ke' + bytes(40) + b"\n",
        "no entry": b'[{"jobs": "2"}]\n',
        "no list": b"7\n",
        "not text": b"\xff\xfe\n",
        "deep": b"[" * 100_000 + b"\n",
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "zeros", "no entry", "no list", "not text", "deep"])
def test_line_that_is_damaged_is_left_out_and_named(ledger, kind):
    folder = ledger.open("one")
    ledger.write(folder, [entry("1", "a")])
    with (folder / NAME).open("ab") as stream:
        stream.write(damaged_line(kind))
    ledger.write(folder, [entry("3", "b")])

    assert [one.job for one in ledger.entries()] == ["1", "3"]
    (told,) = ledger.damage
    assert str(folder / NAME) in told
    assert "skipped" in told


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_ledger_that_cannot_be_read_is_named_and_stops_no_other(ledger, kind):
    ledger.write(ledger.open("mine"), [entry("1", "a")])
    path = ledger.open("other") / NAME
    path.mkdir() if kind == "folder" else path.symlink_to("/dev/zero")

    assert [one.job for one in ledger.entries()] == ["1"]
    assert [NAME in told for told in ledger.damage] == [True]


@pytest.mark.parametrize("content", ["[", "7", ""])
def test_note_of_what_was_left_that_is_damaged_is_as_none(ledger, root, content):
    folder = ledger.open("one")
    (folder / LEFT).write_text(content)

    assert ledger.left(entry("2", folder=str(folder.relative_to(root)))) is None
    assert [LEFT in told for told in ledger.damage] == [True]


@pytest.mark.parametrize("hours", [-2.0, -1 / 60, 2.0])
def test_last_job_of_a_stage_is_that_of_the_last_submission_whatever_the_clocks(ledger, monkeypatch, hours):
    ledger.write(ledger.open("b"), [entry("1", "x", submitted="2026-01-01T12:00:00.000+00:00")])
    later = datetime.now(UTC) + timedelta(hours=hours)
    monkeypatch.setattr("harness.slurm.job_log.now", lambda: later.isoformat(timespec="milliseconds"))

    ledger.write(ledger.open("a"), [entry("2", "x")])

    assert ledger.latest()["x"].job == "2"
    assert [(one.job, one.position) for one in ledger.entries()] == [("1", 0), ("2", 1)]


def test_submissions_of_an_earlier_version_come_before_those_that_are_numbered(ledger, root):
    for stamp, job in (("20261122T140847.368", "2"), ("20261122T130847.368", "1")):
        folder = root / "jobs" / "old" / stamp
        folder.mkdir(parents=True)
        ledger.write(folder, [entry(job, "x")])
    ledger.write(ledger.open("new"), [entry("3", "x")])

    assert [one.job for one in ledger.entries()] == ["1", "2", "3"]


def queued(script, state="PENDING"):
    return Queued(state, "Priority", "", 1, str(script))


def test_job_that_no_ledger_names_is_known_by_its_script(ledger, tmp_path):
    folder = ledger.open("one")
    for name in (".submission_file_a.sh", ".submission_file_b.sh"):
        (folder / name).touch()
    ledger.write(folder, [entry("1", "a")])
    elsewhere = tmp_path / "other store" / folder.relative_to(folder.parents[2])
    queue = {
        "1": queued(folder / ".submission_file_a.sh"),
        "2_0": queued(Path("/mnt/seen/otherwise") / "/".join((folder / ".submission_file_b.sh").parts[-4:])),
        "3": queued(elsewhere / ".submission_file_c.sh"),
        "4": queued("/home/me/notebook.sh"),
        "5": queued(""),
    }

    assert ledger.orphans(queue) == {"2_0": OrphanJob("one", running=False)}
    assert ledger.orphans(queue, "one") == ledger.orphans(queue)
    assert ledger.orphans(queue, "two") == {}


def test_job_that_no_ledger_names_works_if_it_runs_and_has_something_to_run(ledger):
    folder = ledger.open("one")
    script = folder / ".submission_file_a.sh"
    script.touch()
    (folder / "2_submitted.pkl").touch()

    found = ledger.orphans({"1": queued(script, "RUNNING"), "2": queued(script, "RUNNING"), "3": queued(script)})

    assert {job: orphan.running for job, orphan in found.items()} == {"1": False, "2": True, "3": False}


def test_sweep_that_found_everything_in_the_queue_was_submitted_too(ledger):
    ledger.open("two")

    assert ledger.sweeps() == ["two"]
    assert ledger.opened("two")


def test_entry_knows_its_sweep_by_where_it_lies(ledger):
    folder = ledger.open("one")
    ledger.write(folder, [entry("1", "a")])

    assert [one.sweep for one in ledger.entries()] == ["one"]
    assert "sweep" not in (folder / NAME).read_text()


def test_what_was_left_to_a_continuation_is_read_as_it_was_noted(ledger, root):
    folder = ledger.open("one")
    left = entry("2", folder=str(folder.relative_to(root)))

    assert ledger.left(left) is None, "an earlier version noted nothing"
    ledger.write_deferred(folder, {"b", "a"})
    assert ledger.left(left) == {"a", "b"}
