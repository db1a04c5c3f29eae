"""The ledger: which job of the scheduler was given which stages. One file a submission, one line a call of sbatch.

A line is appended as soon as the scheduler has answered, so a submission that dies leaves no job unknown but the one it
was waiting for; that one is known by its script, which lies in the submission's folder (``stray``).

Submissions to a store take turns, so each takes the number after the last one's: which job is a stage's latest does not
depend on anybody's clock. A line that is damaged is left out and told; its jobs are strays as well.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import gettempdir, mkdtemp
from typing import Any, NamedTuple

from harness.engine.files import append_line, read_json, read_lines, write_json, writing
from harness.engine.layout import StoreLayout
from harness.engine.provenance import now
from harness.errors import StoreError
from harness.slurm.client import Queued

NAME = "ledger.jsonl"
CANCELLED = "cancelled"
LEFT = "left.json"
_SUBMISSION = "{}/2*"
"""The folders of a sweep's submissions begin with the year."""
_SERIAL = re.compile(r"-(\d+)$")


@dataclass(frozen=True, kw_only=True)
class JobEntry:
    """A job, or an element of an array.

    Attributes:
        job: the scheduler's id.
        keys: the stages that it runs, in order; none is a continuation, which submits what was left to it.
        user: who submitted it.
        submitted: when, UTC.
        folder: where its script and logs lie, relative to the store.
        shrink: by how much the rows that a stage takes at once are divided, by key, after it ran out of memory.
        excluded: nodes that it was kept from.
        tried: how many attempts of a stage were on record when it was submitted, by key; 0 where absent.
        sweep: whose submission it is of; told by where the entry lies.
        place: how many entries of the store were written before it; told by where it lies.
    """

    job: str
    keys: tuple[str, ...]
    user: str
    submitted: str = field(default_factory=now)
    folder: str = ""
    shrink: Mapping[str, int] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    tried: Mapping[str, int] = field(default_factory=dict)
    sweep: str = field(default="", compare=False)
    place: int = field(default=0, compare=False)

    def log(self, root: Path, stream: str = "err") -> Path:
        """Return the file of what the job printed; ``stream`` is ``out`` or ``err``."""
        return root / self.folder / f"{self.job}_0_log.{stream}"


class Stray(NamedTuple):
    """A job of a sweep that no ledger names: whether it works, be it that its stages have other jobs by now."""

    sweep: str
    works: bool


class JobLog:
    """The jobs of a store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        """Read nothing yet."""
        self._root = root
        self._folder = StoreLayout(root).jobs
        self.damage: dict[str, None] = {}
        """What could not be read so far, a sentence each."""

    def open(self, sweep: str, *, dry_run: bool = False) -> Path:
        """Make the folder of a new submission of a sweep; that of a rehearsal is a temporary one outside of the store.

        Whoever opens one holds the claim that makes submissions take turns.

        Raises:
            StoreError: the store cannot be written.
        """
        if dry_run:
            with writing(Path(gettempdir())):
                return Path(mkdtemp(prefix=f"harness-dry-run-{sweep}-"))
        stamp = now().replace(":", "").replace("-", "").partition("+")[0]
        serial = 1 + max((_order(path)[0] for path in self._folder.glob(_SUBMISSION.format("*"))), default=0)
        folder = self._folder / sweep / f"{stamp}-{serial}"
        with writing(folder):
            folder.mkdir(parents=True)
        return folder

    def write(self, folder: Path, entries: Sequence[JobEntry]) -> None:
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

    def left(self, continuation: JobEntry) -> frozenset[str] | None:
        """Return which stages were left to a continuation; None if that was not noted, or cannot be read."""
        path = self._root / continuation.folder / LEFT
        if not path.exists():
            return None
        try:
            return frozenset(read_json(path))
        except StoreError as error:
            self.damage[str(error)] = None
        except TypeError:
            self.damage[f"The store cannot be read: `{path}` is no list of keys."] = None
        return None

    def entries(self, sweep: str = "*") -> Iterator[JobEntry]:
        """Return the jobs of a sweep, or of all, oldest first. What cannot be read is left out; ``damage`` names it."""
        place = 0
        for path in sorted(self._folder.glob(f"{sweep}/*/{NAME}"), key=lambda path: _order(path.parent)):
            for jobs in self._lines(path):
                try:
                    found = [_read(data, path.parents[1].name, place + index) for index, data in enumerate(jobs)]
                except (TypeError, KeyError, AttributeError):
                    self._left_out(path, "A line")
                    continue
                place += len(found)
                yield from found

    def _lines(self, path: Path) -> list[Any]:
        try:
            return read_lines(path, lambda number: self._left_out(path, f"Line {number}"))
        except StoreError as error:
            self.damage[str(error)] = None
            return []

    def _left_out(self, path: Path, what: str) -> None:
        self.damage[f"{what} of `{path}` is damaged and left out; nobody knows which jobs it named."] = None

    def strays(self, queue: Mapping[str, Queued], sweep: str = "*") -> dict[str, "Stray"]:
        """Return the jobs in the queue that a submission to this store made and no ledger names.

        The scheduler took them and the submission never learned it: it was killed, or its line was damaged since. Only
        whoever holds the claim of submissions can be sure that no answer is on its way.
        """
        known = {entry.job for entry in self.entries()}
        found = {job: self._stray(job, one) for job, one in queue.items() if job not in known}
        return {job: stray for job, stray in found.items() if stray and sweep in ("*", stray.sweep)}

    def _stray(self, job: str, queued: Queued) -> "Stray | None":
        *_, jobs, sweep, submission, name = ("", "", "", "", *PurePosixPath(queued.script).parts)
        # A node may know the store by another path, but names of submissions do not occur twice.
        folder = self._folder / sweep / submission
        if jobs != self._folder.name or not os.path.lexists(folder / name):
            return None
        return Stray(sweep, works=queued.state == "RUNNING" and (folder / f"{job}_submitted.pkl").exists())

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

    def latest(self) -> dict[str, JobEntry]:
        """Return the last job that was given each stage, by its key."""
        return {key: entry for entry in self.entries() for key in entry.keys}


def _order(submission: Path) -> tuple[int, str]:
    """Return a submission's place among all: by its number; those of earlier versions have none and come first."""
    serial = _SERIAL.search(submission.name)
    return (int(serial[1]) if serial else 0, submission.name)


def _read(data: Mapping[str, Any], sweep: str, place: int) -> JobEntry:
    lists = {name: tuple(data[name]) for name in ("keys", "excluded")}
    return JobEntry(**{**data, **lists, "sweep": sweep, "place": place})


def _written(entry: JobEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name not in ("sweep", "place")}
