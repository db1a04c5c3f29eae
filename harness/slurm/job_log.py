"""The job log: which Slurm job runs which stages. One file per submission, one line per call of sbatch.

A line is appended as soon as sbatch returns. A submission that is killed therefore loses at most the job of its last
call, an orphan, which is recognized by its script in the submission's folder.

Submissions to a store are serialized by a lock and numbered consecutively, so that the latest job of a stage does not
depend on clocks. A damaged line is skipped and reported; its jobs become orphans as well.
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
"""Folders of a sweep's submissions; their names begin with the year."""
_SERIAL = re.compile(r"-(\d+)$")


@dataclass(frozen=True, kw_only=True)
class JobEntry:
    """A job, or an element of an array.

    Attributes:
        job: Slurm's job id.
        keys: keys of the stages that it runs, in order; empty for a deferred submission, which submits the stages left
            to it.
        user: name of the submitting user.
        submitted: time of submission, UTC.
        folder: folder of its script and logs, relative to the store.
        shrink: divisor of the micro-batch size after an out-of-memory error, by key.
        excluded: nodes excluded from running it.
        tried: number of recorded attempts of a stage at submission, by key; 0 if absent.
        sweep: id of the submitted sweep; derived from the entry's path.
        position: number of earlier entries in the store; derived from its line.
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
    position: int = field(default=0, compare=False)

    def log(self, root: Path, stream: str = "err") -> Path:
        """Return the job's output file; ``stream`` is ``out`` or ``err``."""
        return root / self.folder / f"{self.job}_0_log.{stream}"


class OrphanJob(NamedTuple):
    """A job of a sweep that the job log lacks; ``running`` is set even if its stages have newer jobs."""

    sweep: str
    running: bool


class JobLog:
    """The job log of a store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        """Read no file yet."""
        self._root = root
        self._folder = StoreLayout(root).jobs
        self.damage: dict[str, None] = {}
        """Messages about what could not be read so far."""

    def open(self, sweep: str, *, dry_run: bool = False) -> Path:
        """Create the folder of a new submission; for a dry run, a temporary folder outside of the store.

        The caller holds the store's submission lock, except for a dry run.

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
        """Append the jobs of one call of sbatch.

        Raises:
            StoreError: the store cannot be written.
        """
        with writing(folder):
            append_line(folder / NAME, [_entry_to_json(entry) for entry in entries])

    def write_deferred(self, folder: Path, keys: Collection[str]) -> None:
        """Record which stages a submission leaves to its deferred submission.

        Raises:
            StoreError: the store cannot be written.
        """
        with writing(folder):
            write_json(folder / LEFT, sorted(keys))

    def left(self, deferred: JobEntry) -> frozenset[str] | None:
        """Return the stages left to a deferred submission; None if they were not recorded or cannot be read."""
        path = self._root / deferred.folder / LEFT
        if not path.exists():
            return None
        try:
            return frozenset(read_json(path))
        except StoreError as error:
            self.damage[str(error)] = None
        except TypeError:
            self.damage[f"The store cannot be read: `{path}` is not a list of keys."] = None
        return None

    def entries(self, sweep: str = "*") -> Iterator[JobEntry]:
        """Return the jobs of one sweep or of all, oldest first. Unreadable entries are skipped; see ``damage``."""
        position = 0
        for path in sorted(self._folder.glob(f"{sweep}/*/{NAME}"), key=lambda path: _order(path.parent)):
            for jobs in self._lines(path):
                try:
                    found = [
                        _entry_from_json(data, path.parents[1].name, position + index)
                        for index, data in enumerate(jobs)
                    ]
                except (TypeError, KeyError, AttributeError):
                    self._report_damage(path, "A line")
                    continue
                position += len(found)
                yield from found

    def _lines(self, path: Path) -> list[Any]:
        try:
            return read_lines(path, lambda number: self._report_damage(path, f"Line {number}"))
        except StoreError as error:
            self.damage[str(error)] = None
            return []

    def _report_damage(self, path: Path, what: str) -> None:
        self.damage[f"{what} of `{path}` is damaged and skipped; the jobs that it listed are unknown."] = None

    def orphans(self, queue: Mapping[str, Queued], sweep: str = "*") -> dict[str, "OrphanJob"]:
        """Return the orphans: jobs in the queue that were submitted to this store and are missing in the job log.

        The submission was killed after sbatch accepted them, or their line was damaged later. Only a holder of the
        submission lock can rule out a submission that is still waiting for sbatch to return.
        """
        known = {entry.job for entry in self.entries()}
        found = {job: self._orphan(job, one) for job, one in queue.items() if job not in known}
        return {job: orphan for job, orphan in found.items() if orphan and sweep in ("*", orphan.sweep)}

    def _orphan(self, job: str, queued: Queued) -> "OrphanJob | None":
        *_, jobs, sweep, submission, name = ("", "", "", "", *PurePosixPath(queued.script).parts)
        # The store may have another path on the node, but names of submissions are unique.
        folder = self._folder / sweep / submission
        if jobs != self._folder.name or not os.path.lexists(folder / name):
            return None
        return OrphanJob(sweep, running=queued.state == "RUNNING" and (folder / f"{job}_submitted.pkl").exists())

    def sweeps(self) -> list[str]:
        """Return the sweeps that were submitted and not cancelled since, without dry runs.

        A sweep whose stages were all in the queue already is included, although it has no jobs of its own.
        """
        names = sorted({path.parent.name for path in self._folder.glob(_SUBMISSION.format("*"))})
        return [name for name in names if not self.cancelled(name)]

    def opened(self, sweep: str) -> bool:
        """Return whether the sweep was submitted, including submissions that Slurm rejected; dry runs do not count."""
        return any(self._folder.glob(_SUBMISSION.format(sweep)))

    def cancelled(self, sweep: str) -> bool:
        """Return whether the sweep was cancelled since it was last submitted."""
        return (self._folder / sweep / CANCELLED).exists()

    def cancel(self, sweep: str, *, undo: bool = False) -> None:
        """Mark the sweep as cancelled, or remove the mark with ``undo``; a submission in progress stops.

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
        """Return the latest job of each stage, by key."""
        return {key: entry for entry in self.entries() for key in entry.keys}


def _order(submission: Path) -> tuple[int, str]:
    """Return the sort key of a submission: its number; those of earlier versions have none and come first."""
    serial = _SERIAL.search(submission.name)
    return (int(serial[1]) if serial else 0, submission.name)


def _entry_from_json(data: Mapping[str, Any], sweep: str, position: int) -> JobEntry:
    lists = {name: tuple(data[name]) for name in ("keys", "excluded")}
    return JobEntry(**{**data, **lists, "sweep": sweep, "position": position})


def _entry_to_json(entry: JobEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name not in ("sweep", "position")}
