import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from toys import ALLOW, Add, Number, chain, run, runs

from harness.engine.store import Store
from harness.errors import DamagedArtifact, StoreError


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
    assert "`harness retry` sets it aside and makes it again." in str(caught.value)
    assert str(store.folder(number)) in str(caught.value)


def test_store_path_of_deleted_and_remade_artifact_is_whole_again(root, number) -> None:
    shutil.rmtree(Store(root).folder(number))
    run(root, [number])

    assert Store(root).path(number).exists()


def test_store_manifest_that_is_cut_off_is_an_error_that_names_it(root, store, number) -> None:
    path = store.folder(number) / "manifest.json"
    path.write_text(path.read_text()[:30])

    with pytest.raises(StoreError, match=r"manifest\.json` is not valid JSON"):
        store.manifest(number.key)


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
    with pytest.raises(StoreError, match="Nothing is known of the key `0123`"):
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
    with pytest.raises(StoreError, match="cannot name a sweep"):
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
    (root / "trouble-1.0").write_text("full")
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

    assert run(root, [number]).cached == (number.key,)


def test_commit_of_a_private_file_makes_it_as_readable_as_its_folder(store) -> None:
    stage = Number(value=1)
    out = store.work(stage.key) / "out"
    out.mkdir(parents=True)
    (out / "private.bin").write_bytes(b"1")
    (out / "private.bin").chmod(0o600)
    out.chmod(0o750)

    store.commit(stage, out, facts={}, provenance={})

    assert (store.folder(stage) / "private.bin").stat().st_mode & 0o777 == 0o640


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
