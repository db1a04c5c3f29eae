"""The ledger: which job of the scheduler was given which stages. One file a submission, one line a call of sbatch.

A line is appended as soon as the scheduler has answered, so a submission that dies leaves no job unknown but the one it
was waiting for; that one finds its stages claimed or stored when it starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.engine.files import append_line, read_lines, writing
from harness.engine.provenance import now

NAME = "ledger.jsonl"
CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job, or an element of an array.

    Attributes:
        job: the scheduler's id.
        keys: the stages that it runs, in order.
        user: who submitted it.
        submitted: when, UTC.
        folder: where its script and logs lie, relative to the store.
        shrink: by how much the micro-batch of a stage is divided, by key, after it ran out of memory.
        excluded: nodes that it was kept from.
    """

    job: str
    keys: tuple[str, ...]
    user: str
    submitted: str = field(default_factory=now)
    folder: str = ""
    shrink: Mapping[str, int] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()

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
        """Make the folder of a new submission of a sweep; a rehearsal has one of another name, and no ledger.

        Raises:
            StoreError: the store cannot be written.
        """
        stamp = now().replace(":", "").replace("-", "").partition("+")[0]
        folder = self._folder / sweep / (f"dry-run-{stamp}" if rehearsing else stamp)
        with writing(folder):
            folder.mkdir(parents=True)
        return folder

    def write(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Append what one call of sbatch submitted.

        Raises:
            StoreError: the store cannot be written.
        """
        with writing(folder):
            append_line(folder / NAME, [asdict(entry) for entry in entries])

    def entries(self, sweep: str = "*") -> Iterator[Entry]:
        """Return the jobs of a sweep, or of all, oldest first.

        Raises:
            StoreError: a ledger cannot be read.
        """
        for path in sorted(self._folder.glob(f"{sweep}/*/{NAME}"), key=lambda path: path.parent.name):
            # What a line told that a full disk cut is found out by claims and manifests.
            for jobs in read_lines(path):
                for data in jobs:
                    yield Entry(**{**data, "keys": tuple(data["keys"]), "excluded": tuple(data["excluded"])})

    def sweeps(self) -> list[str]:
        """Return the sweeps that were submitted and not cancelled since; a rehearsal submits nothing."""
        names = sorted({path.parents[1].name for path in self._folder.glob(f"*/*/{NAME}")})
        return [name for name in names if not self.cancelled(name)]

    def opened(self, sweep: str) -> bool:
        """Say whether somebody submitted the sweep, be it that Slurm refused it; a rehearsal does not count."""
        return any(not path.name.startswith("dry-run") for path in self._folder.glob(f"{sweep}/2*"))

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
