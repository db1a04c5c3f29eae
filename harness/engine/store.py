"""The store: a folder of artifacts, shared by sweeps and users. An artifact is complete if it has a manifest."""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from harness.engine.build import OWN_PREFIXES
from harness.engine.files import LARGE, append_line, probe_in, read_json, read_lines, sync_folder, write_json, writing
from harness.engine.layout import FOLDERS, MANIFEST, SPEC, StoreLayout
from harness.engine.manifest import FileRecord, Manifest, files_in
from harness.engine.spec import describe, rebuild, stages_in
from harness.engine.stage import Stage, origin_of
from harness.errors import ConfigError, StoreError, UnreadableFile

log = logging.getLogger(__name__)

_STAGED = ".manifest.json.staged"
_PLAN_AGAIN = "Run the command of the sweep again: it rewrites the spec."


class Store:
    """A store of artifacts.

    Args:
        root: the folder; it is created on the first write.
        allow: prefixes of the classes that a stored spec may name.
    """

    def __init__(self, root: Path, *, allow: tuple[str, ...] = OWN_PREFIXES) -> None:
        """Access no file: planning may query a store that does not exist yet."""
        self.root = root.absolute()
        self.layout = StoreLayout(self.root)
        self.allow = allow
        self._root = str(self.root)
        self._verified: set[str] = set()
        self._stages: dict[str, Stage] = {}

    def has(self, stage: Stage) -> bool:
        """Return whether the stage's artifact is complete: one file system call, no verification."""
        return os.path.exists(f"{self._root}/artifacts/{stage.name}/{stage.key}/{MANIFEST}")

    def has_now(self, stage: Stage) -> bool:
        """Return whether the stage's artifact is complete, even if another host stored it a moment ago.

        A host that has looked for a file on NFS may be told for a minute that there is none. It looks again when an
        entry was added to the folder from here.
        """
        if self.has(stage):
            return True
        kind = self.folder(stage).parent
        probe = probe_in(kind)
        # A store that cannot be written says so when it is written.
        with suppress(OSError):
            kind.mkdir(parents=True, exist_ok=True)
            probe.mkdir()
            probe.rmdir()
        return self.has(stage)

    def folder(self, stage: Stage) -> Path:
        """Return the path of the stage's artifact, whether or not it exists."""
        return self.layout.artifact(stage.name, stage.key)

    def work(self, key: str) -> Path:
        """Return a stage's work folder, which survives a killed attempt."""
        return self.layout.work(key)

    @property
    def claims(self) -> Path:
        """The folder of claims (lock files), one per key."""
        return self.layout.claims

    def path(self, stage: Stage) -> Path:
        """Return the folder of the stage's artifact, verified once per process.

        Raises:
            StoreError: the artifact is not in the store.
            DamagedArtifact: a file is missing, truncated or altered.
        """
        folder = self.folder(stage)
        if stage.key not in self._verified:
            Manifest.read(folder).verify(folder)
            self._verified.add(stage.key)
        return folder

    def manifest(self, key: str) -> Manifest:
        """Return the manifest of an artifact.

        Raises:
            StoreError: the artifact is not in the store.
            DamagedArtifact: its manifest cannot be read.
        """
        return Manifest.read(self.find(key))

    def manifests(self, kind: str = "*", limit: int | None = None) -> Iterator[Manifest]:
        """Return the readable manifests of one kind or of all, at most ``limit`` of them."""
        for path in islice(sorted(self.layout.manifests(kind)), limit):
            with suppress(StoreError):
                yield Manifest.read(path.parent)

    def prepare(self) -> None:
        """Create the folders of the store and check that they are writable.

        Raises:
            StoreError: the store cannot be written.
        """
        self.check_folder()
        for name in FOLDERS:
            folder = self.root / name
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                probe = probe_in(folder)
                probe.touch()
                probe.unlink()

    def check_folder(self) -> None:
        """Check that the store is a folder, or is still to be made.

        Raises:
            StoreError: it is a file.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"The store `{self.root}` is a file; expected a folder. Set HARNESS_STORE to another one.")

    def register(self, stages: Iterable[Stage]) -> None:
        """Write the frozen specs of planned stages, so that each stage can be run by its key alone.

        An existing spec that differs (damaged, or in an earlier format) is replaced.

        Raises:
            StoreError: the store cannot be written.
        """
        folder = self.layout.specs
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            known = set(os.listdir(folder))
        for stage in stages:
            path = self.layout.spec(stage.key)
            spec = describe(stage)
            if path.name not in known or _read_spec(path) != spec:
                _replace(path, spec)

    def stage(self, key: str) -> Stage:
        """Return a registered or finished stage, rebuilt from its frozen spec.

        Raises:
            StoreError: the key is unknown, or the installed code computes another key from the spec.
        """
        # Ancestors first, so that building a stage builds no other one: a chain may be deeper than Python's stack.
        pending = [] if key in self._stages else [key]
        seen: set[str] = set()
        while pending:
            last = pending[-1]
            if last not in seen:
                seen.add(last)
                pending += [each for each in self._parents(last) if each not in self._stages]
                continue
            pending.pop()
            if last not in self._stages:
                self._stages[last] = self._rebuild(last)
        return self._stages[key]

    def _parents(self, key: str) -> Iterator[str]:
        """Return the keys of a stage's parents from its spec; none if that cannot be read, which rebuilding reports."""
        return stages_in(_read_spec(self.layout.spec(key)) or _read_spec(self.find(key) / SPEC))

    def write_spec(self, stage: Stage, folder: Path) -> None:
        """Write the stage's spec to the folder that becomes its artifact."""
        with writing(folder):
            write_json(folder / SPEC, describe(stage))

    def commit(self, stage: Stage, out: Path, *, facts: dict[str, Any], provenance: dict[str, Any]) -> Manifest:
        """Commit ``out`` as the stage's artifact: hash and sync its files, rename it, and write the manifest last.

        Only the holder of the stage's claim may commit. An existing artifact folder without a manifest was left by a
        killed process and is removed.

        Raises:
            StoreError: the store cannot be written, or ``out`` does not hold the stage's spec.
        """
        if _read_spec(out / SPEC) != describe(stage):
            raise StoreError(
                f"`{out}` is not the output folder of {stage.name} `{stage.key}`: the stage's `{SPEC}` is missing. "
                "It was removed or changed while the stage ran. Run the stage again; nothing was stored."
            )
        folder = self.folder(stage)
        staged = out / _STAGED
        if (out / MANIFEST).exists():
            raise FileExistsError(f"stage `{stage.name}` wrote `{MANIFEST}`, a name that is reserved by the store")
        with writing(folder):
            # Some libraries create files with mode 600; give them the read permissions of the folder.
            readable = out.stat().st_mode & 0o666
            for path in files_in(out):
                path.chmod(readable)
            manifest = Manifest(
                key=stage.key,
                kind=stage.name,
                files={str(path.relative_to(out)): FileRecord.of(path, durable=True) for path in files_in(out)},
                facts=facts,
                provenance=provenance,
                seconds=provenance.get("seconds", 0.0),
                origin=origin_of(stage),
            )
            write_json(staged, manifest.json(), durable=True)
            self.discard_incomplete(stage)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(out, folder)
            sync_folder(folder.parent)
            os.replace(folder / _STAGED, folder / MANIFEST)
            sync_folder(folder)
        self._verified.add(stage.key)
        return manifest

    def discard_incomplete(self, stage: Stage) -> None:
        """Remove an incomplete artifact left by a killed commit. Only for the holder of the stage's claim."""
        folder = self.folder(stage)
        with writing(folder):
            if folder.exists() and not self.has(stage):
                shutil.rmtree(folder)

    def set_aside(self, stage: Stage) -> Path:
        """Move a damaged artifact to ``damaged/``, so that the stage runs again; return its new path.

        Raises:
            StoreError: the store cannot be written.
        """
        folder = self.folder(stage)
        target = self.layout.damaged / f"{stage.key}-{time.time_ns()}"
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            os.replace(folder, target)
        self._verified.discard(stage.key)
        return target

    def record_attempt(self, key: str, record: dict[str, Any]) -> None:
        """Append the record of an attempt of a stage.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self.layout.attempts_of(key)
        with writing(path):
            append_line(path, record)

    def attempts(self, key: str) -> list[dict[str, Any]]:
        """Return the records of a stage's attempts, oldest first."""
        path = self.layout.attempts_of(key)
        return read_lines(path)

    def write_sweep(self, sweep: str, record: dict[str, Any]) -> None:
        """Write or replace the record of a sweep.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self._sweep(sweep)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record, durable=True)

    def read_sweep(self, sweep: str) -> dict[str, Any]:
        """Return the record of a sweep.

        Raises:
            StoreError: there is no such sweep.
            UnreadableFile: its record is damaged.
        """
        path = self._sweep(sweep)
        if not os.path.lexists(path):
            latest = ", ".join(f"`{name}`" for name in self.sweep_ids()[:5])
            raise StoreError(f"There is no sweep `{sweep}` in `{self.root}`. Latest: {latest or 'none'}.")
        remedy = "Run the command of the sweep again: it rewrites the record; stored artifacts are kept."
        try:
            record = read_json(path, limit=LARGE)
        except UnreadableFile as error:
            raise UnreadableFile(f"{error} {remedy}") from None
        if not isinstance(record, dict):
            raise UnreadableFile(f"The store cannot be read: `{path}` is not the record of a sweep. {remedy}")
        return record

    def sweep_ids(self) -> list[str]:
        """Return the ids of the store's sweeps, newest first."""
        paths = [path for path in self.layout.sweeps.glob("*.json") if not path.name.startswith(".")]
        newest_first = sorted(paths, key=lambda path: (path.lstat().st_mtime_ns, path.name), reverse=True)
        return [path.stem for path in newest_first]

    def _sweep(self, sweep: str) -> Path:
        if not sweep or sweep.startswith(".") or "/" in sweep or os.sep in sweep:
            raise StoreError(f"`{sweep}` is not a valid sweep id: expected a file name without slashes or leading dot.")
        return self.layout.sweep(sweep)

    def find(self, key: str) -> Path:
        """Return the folder of the artifact with a key; a path that does not exist if there is none."""
        return self.layout.find(key)

    def _rebuild(self, key: str) -> Stage:
        """Rebuild a stage from its frozen spec, or from the copy in its artifact, which then replaces the spec."""
        frozen, copy = self.layout.spec(key), self.find(key) / SPEC
        problems = []
        for path in (frozen, copy):
            if not os.path.lexists(path):
                continue
            try:
                stage = self._read_stage(path, key)
            except StoreError as error:
                problems.append(str(error))
                continue
            if problems:
                log.warning("%s It is restored from `%s`.", problems[0], copy)
                with suppress(StoreError):
                    _replace(frozen, describe(stage))
            return stage
        if problems:
            raise StoreError("\n".join(problems))
        raise StoreError(
            f"There is no stage with the key `{key}` in `{self.root}`. The report's `key.` columns list all keys."
        )

    def _read_stage(self, path: Path, key: str) -> Stage:
        try:
            data = read_json(path)
        except UnreadableFile as error:
            raise StoreError(f"{error} {_PLAN_AGAIN}") from None
        try:
            stage = rebuild(data, self.stage, allow=self.allow)
        except ConfigError as error:
            raise StoreError(f"The installed code cannot read the spec `{path}`:\n{error}\n{_PLAN_AGAIN}") from None
        if stage.key != key:
            raise StoreError(
                f"The installed code computes the key `{stage.key}` from the spec `{path}`; expected `{key}`. The "
                f"spec is damaged, or the definition of `{stage.name}` has changed since. Run the version of the code "
                "that wrote it, or plan the sweep again."
            )
        return stage


def _read_spec(path: Path) -> Any:
    """Return the content of a spec; None if it cannot be read."""
    try:
        return read_json(path)
    except UnreadableFile:
        return None


def _replace(path: Path, data: Any) -> None:
    """Write JSON, replacing a file or folder at its path."""
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        write_json(path, data)
