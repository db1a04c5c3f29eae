"""The ledger: which job was given which stages."""

import pytest

from harness.engine.ledger import NAME, Entry, Ledger
from harness.errors import StoreError


@pytest.fixture
def ledger(root):
    return Ledger(root)


def entry(job, *keys, **settings):
    return Entry(job=job, keys=keys, user="me", **settings)


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
    ledger.open("rehearsed", rehearsing=True)
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


def test_ledger_that_cannot_be_read_is_named(ledger):
    folder = ledger.open("one")
    (folder / NAME).symlink_to("/dev/zero")

    with pytest.raises(StoreError, match=NAME):
        list(ledger.entries())


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
    ledger.leave(folder, {"b", "a"})
    assert ledger.left(left) == {"a", "b"}
