import errno
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from toys import ALLOW, Add, Number, Silent, chain, run, runs

from harness.engine.claim import Claims
from harness.engine.moved import MOVED
from harness.engine.stage import Stage, StageContext
from harness.engine.store import Store
from harness.errors import DamagedArtifact, Problem, StoreError, UnreadableFile
from harness.execution.attempt import WorkerContext, attempt, log_to_file


@pytest.fixture
def number(root: Path) -> Number:
    stage = Number(value=3)
    run(root, [stage])
    return stage


def test_store_of_finished_stage_has_it_with_its_manifest(root, store, number) -> None:
    manifest = store.manifest(number.key)

    assert store.has(number)
    assert (manifest.key, manifest.kind, manifest.facts) == (number.key, "number", {"digits": 3})
    assert set(manifest.files) == {"spec.json", "sub folder/number.txt"}
    assert manifest.files["sub folder/number.txt"].size == 3
    assert manifest.seconds == manifest.provenance["seconds"] >= 0
    assert (store.path(number) / "sub folder" / "number.txt").read_text() == "3.0"
    assert [each.key for each in store.manifests()] == [number.key]


def test_store_files_follow_the_umask(root, store) -> None:
    before = os.umask(0o027)
    try:
        run(root, [Number(value=3)])
    finally:
        os.umask(before)

    for path in root.glob("artifacts/*/*/manifest.json"):
        assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.write_text("3.1"), "was altered"),
        (lambda path: path.write_text("3"), "has 1 bytes; expected 3"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_store_path_of_damaged_artifact_names_file_and_mend(root, number, damage, expected) -> None:
    store = Store(root, allow=ALLOW)
    damage(store.folder(number) / "sub folder" / "number.txt")

    with pytest.raises(DamagedArtifact) as caught:
        store.path(number)

    assert "`sub folder/number.txt`" in str(caught.value)
    assert expected in str(caught.value)
    assert "`harness retry` sets it aside and recomputes it." in str(caught.value)
    assert str(store.folder(number)) in str(caught.value)


def test_store_path_of_deleted_and_remade_artifact_is_whole_again(root, number) -> None:
    shutil.rmtree(Store(root).folder(number))
    run(root, [number])

    assert Store(root).path(number).exists()


def become(make):
    """Put something else in the place of a file."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES = {
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "other text": lambda path: path.write_text('["no object"]'),
    "no text": lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
    "nested": lambda path: path.write_text("[" * 200_000),
    "huge": lambda path: os.truncate(path, 2**40),
    "folder": become(lambda path: (path.mkdir(), (path / "inside").touch())),
    "pipe": become(os.mkfifo),
    "endless": become(lambda path: path.symlink_to("/dev/zero")),
    "nowhere": become(lambda path: path.symlink_to("nowhere")),
    "itself": become(lambda path: path.symlink_to(path.name)),
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@damaged
def test_manifest_that_is_none_is_a_damaged_artifact_that_is_set_aside_and_made_again(root, store, number, damage):
    path = store.folder(number) / "manifest.json"
    damage(path)
    fresh = Store(root, allow=ALLOW)

    with pytest.raises(DamagedArtifact, match=r"`manifest\.json`.*`harness retry` sets it aside"):
        fresh.path(number)
    with pytest.raises(DamagedArtifact):
        fresh.manifest(number.key)
    assert list(fresh.manifests()) == []
    fresh.set_aside(number)

    assert run(root, [number]).executed == (number.key,)
    assert Store(root).path(number)


@damaged
def test_file_of_an_artifact_that_is_another_is_damage(root, number, damage):
    store = Store(root, allow=ALLOW)
    damage(store.folder(number) / "sub folder" / "number.txt")

    with pytest.raises(DamagedArtifact, match=r"`sub folder/number\.txt`"):
        store.path(number)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_empty_file_of_an_artifact_that_became_endless_is_damage(store, make):
    """Both have the size that is expected, nought."""
    stage = Number(value=1)
    out = store.work(stage.key) / "out"
    out.mkdir(parents=True)
    store.write_spec(stage, out)
    (out / "empty").touch()
    store.commit(stage, out, facts={}, provenance={})
    become(make)(store.folder(stage) / "empty")

    with pytest.raises(DamagedArtifact, match=r"`empty` cannot be read.*expected a regular file"):
        Store(store.root).path(stage)


@damaged
def test_damaged_spec_is_replaced_by_the_copy_in_the_artifact(root, number, damage):
    path = root / "specs" / f"{number.key}.json"
    before = json.loads(path.read_text())
    damage(path)

    assert Store(root, allow=ALLOW).stage(number.key) == number
    assert json.loads(path.read_text()) == before
    assert not path.is_symlink()


@pytest.mark.parametrize("change", [{"value": 4.0}, {"valeu": 4.0}, {"_target_": "toys.Gone"}])
def test_spec_that_says_something_else_is_replaced_by_the_copy_in_the_artifact(root, number, change):
    path = root / "specs" / f"{number.key}.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, **change}))

    assert Store(root, allow=ALLOW).stage(number.key) == number
    assert json.loads(path.read_text()) == before


@damaged
def test_damaged_spec_without_a_copy_says_what_to_do_and_planning_does_it(root, store, damage):
    stage = Number(value=3)
    store.register([stage])
    path = root / "specs" / f"{stage.key}.json"
    damage(path)

    with pytest.raises(StoreError, match="Run the command of the sweep again") as caught:
        Store(root, allow=ALLOW).stage(stage.key)
    assert str(path) in str(caught.value)
    store.register([stage])

    assert Store(root, allow=ALLOW).stage(stage.key) == stage


def test_spec_of_earlier_versions_is_read_and_rewritten_when_its_stage_is_planned(root, store, monkeypatch):
    stage = Number(value=3)
    store.register([stage])
    path = root / "specs" / f"{stage.key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_target_": "old_toys.numbers.Number"}))
    monkeypatch.setitem(MOVED, "old_toys.numbers", "toys")
    allow = (*ALLOW, "old_toys.")

    assert Store(root, allow=allow).stage(stage.key) == stage
    store.register([stage])

    assert json.loads(path.read_text())["_target_"] == "toys.Number"


@damaged
def test_damaged_record_of_a_sweep_is_told_and_stops_no_other(store, damage):
    for name in ("mine", "other"):
        store.write_sweep(name, {"id": name, "cells": []})
    damage(store.root / "sweeps" / "other.json")

    with pytest.raises(UnreadableFile, match=r"other\.json`.*Run the command of the sweep again"):
        store.read_sweep("other")
    assert store.read_sweep("mine")["id"] == "mine"
    assert sorted(store.sweep_ids()) == ["mine", "other"]


@pytest.mark.parametrize("line", [b'[{"job": "12"\n', b"\0\0\0\n", b"\xff\xfe\n", b"[" * 200_000 + b"\n"])
def test_line_that_is_no_json_is_left_out_and_told(store, caplog, line):
    store.prepare()
    for outcome in ("failed", "executed"):
        store.record_attempt("a" * 16, {"outcome": outcome})
        if outcome == "failed":
            with (store.root / "attempts" / f"{'a' * 16}.jsonl").open("ab") as file:
                file.write(line)

    assert [attempt["outcome"] for attempt in store.attempts("a" * 16)] == ["failed", "executed"]
    assert "line 2 of" in caplog.text


def test_store_path_of_missing_artifact_is_an_error(store) -> None:
    with pytest.raises(StoreError, match="is not a complete artifact"):
        store.path(Number(value=1))
    with pytest.raises(StoreError, match="is not a complete artifact"):
        store.manifest("0123456789abcdef")


def test_store_stage_of_registered_key_is_rebuilt_with_its_parents(root, store) -> None:
    leaf = chain(3)
    store.register([leaf.parent.parent, leaf.parent, leaf])

    rebuilt = Store(root, allow=ALLOW).stage(leaf.key)

    assert rebuilt == leaf
    assert rebuilt.parent.parent == Number(value=0)


def test_store_stage_of_artifact_without_registration_is_rebuilt(root, store, number) -> None:
    shutil.rmtree(root / "specs")

    assert store.stage(number.key) == number


def test_store_stage_of_unknown_key_is_an_error(store) -> None:
    with pytest.raises(StoreError, match="There is no stage with the key `0123`"):
        store.stage("0123")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"value": 4.0}, "has changed since"),
        ({"valeu": 4.0}, "unknown setting for `number` .did you mean `value`"),
        ({"_target_": "os.system"}, "is not allowed"),
    ],
)
def test_store_stage_of_spec_with_another_meaning_is_an_error(root, store, change, expected) -> None:
    stage = Number(value=3)
    store.register([stage])
    path = root / "specs" / f"{stage.key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(StoreError, match=expected):
        store.stage(stage.key)


def test_store_register_leaves_existing_specs_alone(root, store) -> None:
    stage = Number(value=3)
    store.register([stage])
    before = (root / "specs" / f"{stage.key}.json").stat().st_mtime_ns

    store.register([stage, Number(value=4)])

    assert (root / "specs" / f"{stage.key}.json").stat().st_mtime_ns == before
    assert len(os.listdir(root / "specs")) == 2


def test_store_sweeps_are_listed_newest_first(root, store) -> None:
    for age, name in enumerate(["c", "a", "b b"]):
        store.write_sweep(name, {"cells": age})
        os.utime(root / "sweeps" / f"{name}.json", ns=(age, age))

    assert store.sweep_ids() == ["b b", "a", "c"]
    assert store.read_sweep("a") == {"cells": 1}
    with pytest.raises(StoreError, match=r"There is no sweep `d`.*Latest: `b b`, `a`, `c`"):
        store.read_sweep("d")
    with pytest.raises(StoreError, match="is not a valid sweep id"):
        store.write_sweep("../d", {})


@pytest.mark.parametrize("call", range(2))
def test_store_commit_that_dies_at_a_rename_leaves_nothing_that_looks_complete(root, store, monkeypatch, call) -> None:
    """Renames of a commit: the folder into place, then the manifest to its name."""
    stage = Number(value=3)
    store.prepare()
    store.register([stage])
    original, renames = os.replace, []

    def replace(source, target):
        if "number" in str(target):
            renames.append(target)
            if len(renames) == call + 1:
                raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Exception, match="Stopped"):
        run(root, [stage])
    monkeypatch.undo()
    seen = store.has(stage), store.folder(stage).exists()
    run(root, [stage])

    assert seen == (False, call == 1)
    assert Store(root).path(stage)
    assert not list(store.folder(stage).glob(".*"))


@pytest.mark.parametrize("suffix", ["spec.json", "manifest.json.staged", "log.txt"])
def test_store_on_full_disk_is_a_failure_with_a_mend_and_harms_nothing(root, store, monkeypatch, suffix) -> None:
    stage, stored = Number(value=3), Number(value=4)
    run(root, [stored])
    kept = (store.folder(stored) / "manifest.json").read_bytes()

    original = Path.open

    def opened(self: Path, mode: str = "r", *args, **kwargs):
        if suffix in self.name and set(mode) & set("wxa"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return original(self, mode, *args, **kwargs)

    if suffix == "log.txt":
        monkeypatch.setattr("logging.FileHandler.__init__", lambda self, path, **_: opened(Path(path), "a"))
    monkeypatch.setattr(Path, "open", opened)
    outcome = run(root, [stage])
    monkeypatch.undo()

    failure = outcome.failed[stage.key]
    assert (failure.cause, failure.trace) == ("StoreError", "")
    assert "full" in failure.message
    assert not store.has(stage)
    assert (store.folder(stored) / "manifest.json").read_bytes() == kept
    assert run(root, [stage]).complete


def test_store_full_while_a_stage_writes_is_no_bug(root, store) -> None:
    stage = Add(parent=Number(value=1), amount=1)
    root.mkdir()
    (root / "trouble-1").write_text("full")

    failure = run(root, [stage]).failed[stage.key]

    assert (failure.cause, failure.trace) == ("StoreError", "")
    assert "disk or quota is full" in failure.message


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_store_that_is_read_only_is_refused_before_anything_runs(root, monkeypatch, code) -> None:
    def mkdir(self: Path, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(StoreError, match="is read-only"):
        run(root, [Number(value=3)])

    assert not runs(root)


def test_store_that_is_a_file_is_refused(root) -> None:
    root.write_text("not a folder")

    with pytest.raises(StoreError, match="is a file; expected a folder"):
        run(root, [Number(value=3)])


def test_store_that_is_read_only_but_complete_is_enough(root, number, monkeypatch) -> None:
    def mkdir(self: Path, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)

    assert run(root, [number]).stored == (number.key,)


def test_commit_of_a_private_file_makes_it_as_readable_as_its_folder(store) -> None:
    stage = Number(value=1)
    out = store.work(stage.key) / "out"
    out.mkdir(parents=True)
    store.write_spec(stage, out)
    (out / "private.bin").write_bytes(b"1")
    (out / "private.bin").chmod(0o600)
    out.chmod(0o750)

    store.commit(stage, out, facts={}, provenance={})

    assert (store.folder(stage) / "private.bin").stat().st_mode & 0o777 == 0o640


def test_commit_of_a_folder_that_was_removed_and_made_anew_stores_nothing(root, store):
    """As a library does that writes into a folder which somebody has removed while the stage ran."""
    stage = Number(value=1)
    out = store.work(stage.key) / "out"
    out.mkdir(parents=True)
    (out / "weights").touch()

    with pytest.raises(StoreError, match="is not the output folder of number"):
        store.commit(stage, out, facts={}, provenance={})
    store.write_spec(Number(value=2), out)
    with pytest.raises(StoreError, match="is not the output folder of number"):
        store.commit(stage, out, facts={}, provenance={})

    assert not store.folder(stage).exists()


class SafetensorError(Exception):
    """As safetensors raises it, whose errors are no OSError."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Writes(Stage):
    """Fails as a file system or a library that writes by itself does, and says what happened to the store."""

    name = "writes"
    version = 1
    how: str

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        match self.how:
            case "safetensors":
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            case "quota":
                raise SafetensorError("Error while serializing: I/O error: (os error 122)")
            case "wrapped":
                try:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    raise RuntimeError("could not write the archive") from error
            case "archive":
                raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
            case "rival":
                for path in ctx.work.parent.parent.glob("claims/*"):
                    path.unlink()
                shutil.rmtree(ctx.out)


@pytest.mark.parametrize("how", ["safetensors", "quota", "wrapped"])
def test_full_disk_in_the_words_of_another_library_is_no_bug(root, how):
    stage = Writes(how=how)

    failure = run(root, [stage]).failed[stage.key]

    assert (failure.cause, failure.trace) == ("StoreError", "")
    assert "disk or quota is full" in failure.message


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, "disk or quota is full"), (errno.EROFS, "is read-only")])
def test_store_that_refuses_while_a_library_writes_is_named_in_place_of_its_error(root, monkeypatch, code, expected):
    stage = Writes(how="archive")
    original = Path.open

    def opened(self: Path, mode: str = "r", *args, **kwargs):
        if "x" in mode and "probe" in self.name:
            raise OSError(code, os.strerror(code), str(self))
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    failure = run(root, [stage]).failed[stage.key]

    assert (failure.cause, failure.trace) == ("StoreError", "")
    assert expected in failure.message
    assert "PytorchStreamWriter" in failure.message


def test_error_of_a_library_on_a_store_that_can_be_written_stays_a_bug(root):
    stage = Writes(how="archive")

    failure = run(root, [stage]).failed[stage.key]

    assert failure.cause == "RuntimeError"
    assert "Traceback" in failure.trace


def test_process_that_lost_its_stage_to_a_rival_leaves_no_failure_of_it(root, store):
    stage = Writes(how="rival")
    store.prepare()
    context = WorkerContext(store=store, claims=Claims(store.claims), tracker=Silent())

    result = attempt(stage, context)

    assert (result.outcome, result.cause, result.message) == ("busy", "", "")
    assert [(each["outcome"], each.get("cause")) for each in store.attempts(stage.key)] == [("busy", None)]


def test_log_that_a_full_disk_cuts_stops_nothing(root, tmp_path, capsys):
    with log_to_file(Path("/dev/full")):
        logging.getLogger("harness.engine").error("cut")

    assert capsys.readouterr().err == ""


def test_attempt_that_a_full_disk_cuts_is_told_and_harms_no_other(store, monkeypatch):
    store.prepare()
    store.record_attempt("a" * 16, {"outcome": "failed", "message": "before\u2028it"})
    whole = os.write

    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda handle, data: whole(handle, data[:9]))
        with pytest.raises(StoreError, match="full"):
            store.record_attempt("a" * 16, {"outcome": "cut"})
    store.record_attempt("a" * 16, {"outcome": "executed"})

    assert [attempt["outcome"] for attempt in store.attempts("a" * 16)] == ["failed", "executed"]
