import errno
import multiprocessing
import os
import platform
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


QUICK = {"lease_seconds": 0.5, "heartbeat_seconds": 0.1}


def notice(folder: Path, done: Path) -> None:
    with Claims(folder, **QUICK).take("key") as claim:
        (done / "held").touch()
        wait_for((done / "look").exists)
        (done / "noticed").write_text(str(claim.held()))
    (done / "released").touch()


def test_claim_of_suspended_process_is_taken_over_after_the_lease_and_noticed(folder, tmp_path) -> None:
    """As that of another host that vanished: its process may live, and no longer touches the claim."""
    other = SPAWN.Process(target=notice, args=(folder, tmp_path))
    other.start()
    wait_for((tmp_path / "held").exists)
    os.kill(other.pid, signal.SIGSTOP)
    watcher = Claims(folder, **QUICK)

    first_look = watcher.take("key")
    later: list = []
    wait_for(lambda: bool(later.append(watcher.take("key")) or later[-1]))
    (tmp_path / "look").touch()
    os.kill(other.pid, signal.SIGCONT)
    wait_for((tmp_path / "released").exists)
    other.join()

    assert first_look is None
    assert (tmp_path / "noticed").read_text() == "False"
    assert later[-1].held()
    later[-1].release()


def test_claim_that_the_file_system_does_not_let_go_of_hides_nothing(folder, monkeypatch, caplog) -> None:
    """A store that became read-only under the holder: what it did says so, not the claim."""
    claim = Claims(folder).take("key")

    def unlink(self: Path, **_: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    with monkeypatch.context() as frozen:
        frozen.setattr(Path, "unlink", unlink)
        frozen.setattr(os, "unlink", unlink)
        with claim:
            pass

    assert "could not be released" in caplog.text
    assert (folder / "key").exists()


@pytest.mark.parametrize(("failures", "held"), [(1, True), (2, True), (99, False)])
def test_record_that_cannot_be_read_for_a_moment_is_no_lost_claim(folder, monkeypatch, failures, held) -> None:
    monkeypatch.setattr("harness.engine.claim.READ_PAUSES", (0.0, 0.0, 0.0))
    claim = Claims(folder).take("key")
    left = [OSError(errno.ESTALE, "Stale file handle")] * failures
    true = os.open

    def fails(path, *arguments, **named):
        if str(path).endswith("key") and left:
            raise left.pop()
        return true(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        found = claim.held()
    claim.release()

    assert found == held


def test_removed_claim_is_lost_at_once(folder, monkeypatch) -> None:
    monkeypatch.setattr("harness.engine.claim.READ_PAUSES", (1000.0,))
    claim = Claims(folder).take("key")
    (folder / "key").unlink()

    assert not claim.held()


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

    with pytest.raises(StoreError, match="Another version of the harness is using this store"):
        Claims(folder, lease_seconds=7, heartbeat_seconds=1).take("key")

    holder.release()


@pytest.mark.slow
def test_claim_of_killed_process_is_taken_over_after_the_lease_where_names_cannot_be_exchanged(
    folder, tmp_path
) -> None:
    other = SPAWN.Process(target=hold_shortly, args=(folder, tmp_path))
    other.start()
    wait_for((tmp_path / "held").exists)
    os.kill(other.pid, signal.SIGKILL)
    other.join()

    taker = SPAWN.Process(target=take_without_exchange, args=(folder, tmp_path))
    taker.start()
    taker.join()

    assert (tmp_path / "looks").read_text() == "first None, then held True"
    assert not list(folder.iterdir())


def take_without_exchange(folder: Path, done: Path) -> None:
    # On a machine that it does not know, filelock cannot exchange two names either, as on NFS.
    platform.machine = lambda: "unknown"
    claims = Claims(folder, lease_seconds=1, heartbeat_seconds=0.1)
    refused = claims.take("key")
    taken: list = []
    wait_for(lambda: taken.extend(filter(None, [claims.take("key")])) or taken)
    with taken[0]:
        (done / "looks").write_text(f"first {refused}, then held {taken[0].held()}")


def hold_shortly(folder: Path, done: Path) -> None:
    with Claims(folder, lease_seconds=1, heartbeat_seconds=0.1).take("key"):
        (done / "held").touch()
        wait_for((done / "release").exists)


def test_claim_that_was_made_while_a_silent_one_is_removed_stays(folder, monkeypatch) -> None:
    path = folder / "key"
    path.write_text("silent")
    judged = claim._stat(path)
    looks = iter([judged])
    again = claim._stat
    monkeypatch.setattr(claim, "_stat", lambda path: next(looks, None) or again(path))
    path.unlink()
    path.write_text("another one")

    claim._remove(path, judged)

    assert path.read_text() == "another one"
    assert [left.name for left in folder.iterdir()] == ["key"]
