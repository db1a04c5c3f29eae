import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from toys import wait_for

from harness.engine import claim
from harness.engine.claim import Claims
from harness.errors import StoreError

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "the claims"
    folder.mkdir()
    return folder


def hold(folder: Path, done: Path) -> None:
    with Claims(folder).take("key"):
        (done / "held").touch()
        wait_for((done / "release").exists)
    (done / "released").touch()


def test_claim_of_live_process_is_refused_until_it_is_released(folder, tmp_path) -> None:
    other = SPAWN.Process(target=hold, args=(folder, tmp_path))
    other.start()
    wait_for((tmp_path / "held").exists)
    claims = Claims(folder)

    refused = [claims.take("key") for _ in range(3)]
    unrelated = claims.take("another key")
    (tmp_path / "release").touch()
    wait_for((tmp_path / "released").exists)
    other.join()

    assert refused == [None, None, None]
    with unrelated, claims.take("key") as claim:
        assert claim.held()


def test_claim_of_killed_process_is_taken_over_at_once(folder, tmp_path) -> None:
    other = SPAWN.Process(target=hold, args=(folder, tmp_path))
    other.start()
    wait_for((tmp_path / "held").exists)
    claims = Claims(folder)
    refused = claims.take("key")
    os.kill(other.pid, signal.SIGKILL)
    other.join()

    taken = claims.take("key") or claims.take("key")

    assert refused is None
    with taken:
        assert taken.held()


def test_claim_within_one_process_is_held_once(folder) -> None:
    first = Claims(folder).take("key")

    assert first.held()
    assert Claims(folder).take("key") is None
    first.release()
    assert Claims(folder).take("key").held()


def test_claim_of_silent_foreign_host_is_taken_over_after_the_lease_and_noticed(folder) -> None:
    quick = {"lease_seconds": 0.2, "heartbeat_seconds": 0.19}
    holder = Claims(folder, **quick).take("key")
    # A holder that was suspended, or whose host vanished, no longer touches its claim.
    holder._lease._stop_heartbeat()
    watcher = Claims(folder, **quick)

    first_look = watcher.take("key")
    later: list = []
    wait_for(lambda: bool(later.append(watcher.take("key")) or later[-1]))

    assert first_look is None
    assert later[-1].held()
    assert not holder.held()
    holder.release()
    assert later[-1].held()


def test_claim_that_is_touched_outlives_many_leases(folder) -> None:
    quick = {"lease_seconds": 0.3, "heartbeat_seconds": 0.02}
    holder = Claims(folder, **quick).take("key")
    watcher = Claims(folder, **quick)
    start = os.stat(folder / "key").st_mtime

    taken: list = []
    wait_for(lambda: bool(taken.append(watcher.take("key"))) or os.stat(folder / "key").st_mtime > start + 1)

    assert set(taken) == {None}
    assert holder.held()
    holder.release()


def test_claim_of_process_that_was_killed_before_it_wrote_its_name_is_taken_over(folder) -> None:
    (folder / "key").touch()
    claims = Claims(folder, lease_seconds=30, heartbeat_seconds=0.05)

    first_look = claims.take("key")
    later: list = []
    wait_for(lambda: bool(later.append(claims.take("key")) or later[-1]))

    assert first_look is None
    with later[-1]:
        assert later[-1].held()


def test_claims_with_another_lease_are_refused(folder) -> None:
    holder = Claims(folder).take("key")

    with pytest.raises(StoreError, match="Another version of the harness"):
        Claims(folder, lease_seconds=7, heartbeat_seconds=1).take("key")

    holder.release()


def test_claim_of_killed_process_is_taken_over_after_the_lease_where_names_cannot_be_exchanged(
    folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    other = SPAWN.Process(target=hold_shortly, args=(folder, tmp_path))
    other.start()
    wait_for((tmp_path / "held").exists)
    claims = Claims(folder, lease_seconds=1, heartbeat_seconds=0.1)
    os.kill(other.pid, signal.SIGKILL)
    other.join()

    refused = claims.take("key")
    taken = []
    wait_for(lambda: taken.extend(filter(None, [claims.take("key")])) or taken)

    assert refused is None
    with taken[0]:
        assert taken[0].held()
    assert not list(folder.iterdir())


def hold_shortly(folder: Path, done: Path) -> None:
    with Claims(folder, lease_seconds=1, heartbeat_seconds=0.1).take("key"):
        (done / "held").touch()
        wait_for((done / "release").exists)


def test_claim_that_was_made_while_a_silent_one_is_removed_stays(folder, monkeypatch) -> None:
    path = folder / "key"
    path.write_text("silent")
    judged = claim._look(path)
    looks = iter([judged])
    again = claim._look
    monkeypatch.setattr(claim, "_look", lambda path: next(looks, None) or again(path))
    path.unlink()
    path.write_text("another one")

    claim._remove(path, judged)

    assert path.read_text() == "another one"
    assert [left.name for left in folder.iterdir()] == ["key"]
