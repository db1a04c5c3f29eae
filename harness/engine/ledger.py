"""The ledger: which job of the scheduler was given which stages. One file a submission, one line a call of sbatch.

A line is appended as soon as the scheduler has answered, so a submission that dies leaves no job unknown but the one it
was waiting for; that one finds its stages claimed or stored when it starts.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any

from harness.engine.files import append_line, read_lines, reading, write_json, writing
from harness.engine.provenance import now

NAME = "ledger.jsonl"
CANCELLED = "cancelled"
LEFT = "left.json"
_SUBMISSION = "{}/2*"
"""The folders of a sweep's submissions begin with the year."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job, or an element of an array.

    Attributes:
        job: the scheduler's id.
        keys: the stages that it runs, in order; none is a continuation, which submits what was left to it.
        user: who submitted it.
        submitted: when, UTC.
        folder: where its script and logs lie, relative to the store.
        shrink: by how much the micro-batch of a stage is divided, by key, after it ran out of memory.
        excluded: nodes that it was kept from.
        sweep: whose submission it is of; told by where the entry lies.
    """

    job: str
    keys: tuple[str, ...]
    user: str
    submitted: str = field(default_factory=now)
    folder: str = ""
    shrink: Mapping[str, int] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    sweep: str = field(default="", compare=False)

    def log(self, root: Path, stream: str = "err") -> Path:
        """Return the file of what the job printed; ``stream`` is ``out`` or ``err``."""
        return root / self.folder / f"{self.job}_0_log.{stream}"


class Ledger:
    """The jobs of a store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        """Read nothing yet."""
        self._root = root
        self._folder = root / "jobs"

    def open(self, sweep: str, *, rehearsing: bool = False) -> Path:
        """Make the folder of a new submission of a sweep; that of a rehearsal is a temporary one outside of the store.

        Raises:
            StoreError: the store cannot be written.
        """
        if rehearsing:
            with writing(Path(gettempdir())):
                return Path(mkdtemp(prefix=f"harness-dry-run-{sweep}-"))
        stamp = now().replace(":", "").replace("-", "").partition("+")[0]
        folder = self._folder / sweep / stamp
        with writing(folder):
            folder.mkdir(parents=True)
        return folder

    def write(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Append what one call of sbatch submitted.

        Raises:
            StoreError: the store cannot be written.
        """
        with writing(folder):
            append_line(folder / NAME, [_written(entry) for entry in entries])

    def leave(self, folder: Path, keys: Collection[str]) -> None:
        """Note which stages a submission leaves to its continuation.

        Raises:
            StoreError: the store cannot be written.
        """
        with writing(folder):
            write_json(folder / LEFT, sorted(keys))

    def left(self, continuation: Entry) -> frozenset[str] | None:
        """Return which stages were left to a continuation; None if it is of a version that did not note them.

        Raises:
            StoreError: the note cannot be read.
        """
        path = self._root / continuation.folder / LEFT
        if not path.exists():
            return None
        with reading(path):
            return frozenset(json.loads(path.read_text("utf-8")))

    def entries(self, sweep: str = "*") -> Iterator[Entry]:
        """Return the jobs of a sweep, or of all, oldest first.

        Raises:
            StoreError: a ledger cannot be read.
        """
        for path in sorted(self._folder.glob(f"{sweep}/*/{NAME}"), key=lambda path: path.parent.name):
            # What a line told that a full disk cut is found out by claims and manifests.
            for jobs in read_lines(path):
                for data in jobs:
                    lists = {name: tuple(data[name]) for name in ("keys", "excluded")}
                    yield Entry(**{**data, **lists, "sweep": path.parents[1].name})

    def sweeps(self) -> list[str]:
        """Return the sweeps that were submitted and not cancelled since; a rehearsal submits nothing.

        One that found all its stages in the queue has no jobs of its own, and lives on those of others.
        """
        names = sorted({path.parent.name for path in self._folder.glob(_SUBMISSION.format("*"))})
        return [name for name in names if not self.cancelled(name)]

    def opened(self, sweep: str) -> bool:
        """Say whether somebody submitted the sweep, be it that Slurm refused it; a rehearsal does not count."""
        return any(self._folder.glob(_SUBMISSION.format(sweep)))

    def cancelled(self, sweep: str) -> bool:
        """Say whether somebody cancelled the sweep since it was last asked for."""
        return (self._folder / sweep / CANCELLED).exists()

    def cancel(self, sweep: str, *, undo: bool = False) -> None:
        """Note that the sweep was cancelled, or that it is asked for again; a submission under way stops.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self._folder / sweep / CANCELLED
        with writing(path):
            if undo:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    def latest(self) -> dict[str, Entry]:
        """Return the last job that was given each stage, by its key."""
        return {key: entry for entry in self.entries() for key in entry.keys}


def _written(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name != "sweep"}
