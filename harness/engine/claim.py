"""Claims: locks on keys, so that one process at a time works on a key. A thin layer over filelock's lease.

A claim is a lock file whose holder updates its modification time as a heartbeat. The claim of a process that died on
this host is taken over at once (on file systems without atomic exchange of names, such as NFS, after the lease). The
claim of a process on another host is taken over after ``LEASE_SECONDS`` without a heartbeat; that of a live process on
this host, never. A holder that was suspended for longer may have lost its claim, so it must check ``held`` before it
commits.
"""

import logging
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil
from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from harness.engine.files import writing
from harness.errors import StoreError

log = logging.getLogger(__name__)
LEASE_SECONDS = 120.0
"""Twice the time for which network file systems may report a stale modification time."""
HEARTBEAT_SECONDS = 15.0
READ_PAUSES = (0.2, 1.0, 5.0)
"""Seconds before the record of a held claim that cannot be read is read again."""


class Claim:
    """A claim of this process, held until it is released."""

    def __init__(self, lease: SoftFileLease) -> None:
        """Wrap an acquired lease."""
        self._lease = lease
        self.token = lease.token or ""

    def held(self) -> bool:
        """Return whether this process still holds the claim, rather than another that took it over."""
        owner = self._lease.owner
        for pause in READ_PAUSES:
            if owner is not None or self._lease.compromise is not None or self._is_gone():
                break
            # The work of hours depends on the answer, and a network file system may fail for a moment.
            time.sleep(pause)
            owner = self._lease.owner
        return self._lease.compromise is None and owner is not None and owner.token == self.token

    def _is_gone(self) -> bool:
        try:
            os.lstat(self._lease.lock_file)
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False

    def release(self) -> None:
        """Release the claim, unless another process took it over.

        A file system error is only logged, as the work under the claim has ended by now. Such a claim is taken over
        when this process ends, or when the lease expires.
        """
        try:
            self._lease.release()
        except OSError as error:
            log.warning("the claim `%s` could not be released: %s", self._lease.lock_file, error)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Claims:
    """Takes claims on the keys of a store for this process.

    Args:
        folder: the store's folder of claims.
        lease_seconds: time without a heartbeat after which a claim from another host is taken over; the same in every
            process that uses the store.
        heartbeat_seconds: interval between heartbeats of a held claim.
    """

    def __init__(
        self, folder: Path, *, lease_seconds: float = LEASE_SECONDS, heartbeat_seconds: float = HEARTBEAT_SECONDS
    ) -> None:
        self._folder = folder
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        # Kept while another process holds a key: a lease measures the time since its heartbeat over several calls.
        self._leases: dict[str, SoftFileLease] = {}
        self._seen: dict[Path, tuple[_Stat, float]] = {}

    def take(self, key: str) -> Claim | None:
        """Take the claim on a key without waiting; None if another process holds it.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self._folder / key
        lease = self._leases.pop(key, None) or SoftFileLease(
            path,
            lease_duration=self._lease_seconds,
            heartbeat_interval=self._heartbeat_seconds,
            thread_local=False,
            blocking=False,
        )
        try:
            with writing(path):
                try:
                    lease.acquire()
                # Timeout is an OSError, which `writing` would convert.
                except Timeout:
                    self._leases[key] = lease
                    self._break_if_stale(path)
                    return None
        except LeaseSettingsMismatch as error:
            raise StoreError(
                f"Another version of the harness is using this store: {error}. Wait for it, or use the same version."
            ) from None
        return Claim(lease)

    def _break_if_stale(self, path: Path) -> None:
        """Remove a claim without a heartbeat for longer than the lease.

        filelock takes over claims of dead processes, except on file systems without atomic exchange of names (NFS),
        and except an empty file, left by a process that was killed between creating it and writing its record.
        """
        try:
            current = _stat(path)
        except FileNotFoundError:
            return
        previous, seen_at = self._seen.get(path, (None, 0.0))
        if current != previous:
            self._seen[path] = (current, time.monotonic())
            return
        # A live holder would have written its record and updated it since.
        timeout = self._lease_seconds + self._heartbeat_seconds if current.size else 2 * self._heartbeat_seconds
        if time.monotonic() - seen_at > timeout:
            _remove(path, current)


class _Stat(NamedTuple):
    """Stat fields of a claim file that change with a heartbeat, or when the file is replaced."""

    inode: int
    size: int
    modified: int


def _stat(path: Path) -> _Stat:
    found = path.lstat()
    return _Stat(found.st_ino, found.st_size, found.st_mtime_ns)


def _remove(path: Path, stale: _Stat) -> None:
    aside = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{time.monotonic_ns()}")
    with suppress(FileNotFoundError):
        if _stat(path) != stale:
            return
        # Only one of several processes can rename the file; a new claim that replaced it meanwhile is put back.
        os.rename(path, aside)
        if _stat(aside) != stale:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def live_claims(folder: Path) -> set[str]:
    """Return the keys with a recent heartbeat: a live process works on them."""
    now, found = time.time(), set()
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            if now - path.stat().st_mtime < LEASE_SECONDS:
                found.add(path.name)
        except FileNotFoundError:
            continue
    return found


def is_abandoned(folder: Path, key: str, nodes: str) -> bool:
    """Return whether the holder of a claim is known to be dead: a process of this host, or of an ended job.

    Args:
        folder: the store's folder of claims.
        key: the claimed key.
        nodes: nodes of an ended job that ran the key; empty if there is none.
    """
    lease = SoftFileLease(folder / key, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    if (owner := lease.owner) is None:
        return False
    # filelock appends `?` and an id that distinguishes containers of one host.
    host = owner.hostname.partition("?")[0]
    if host == platform.node():
        return not psutil.pid_exists(owner.pid)
    return host.partition(".")[0] == nodes.partition(".")[0]


def holder(folder: Path, key: str) -> str:
    """Describe the process that holds a claim; empty if none does, or it has not written its record yet."""
    lease = SoftFileLease(folder / key, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else ""
