"""Claims: "somebody is working on this key". A thin layer over filelock's lease.

A claim is a file that its holder touches while it lives. The claim of a process that died on this host is taken over
at once (on file systems that cannot exchange two names, as NFS, after the lease); that of a process on another host
when it was not touched for ``LEASE_SECONDS``; that of a live one never. A holder that was suspended for longer may find
its claim taken, and must ask ``held`` before it commits.
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
"""Twice the time for which network file systems may show an old modification time."""
HEARTBEAT_SECONDS = 15.0


class Claim:
    """A claim that is held until it is released."""

    def __init__(self, lease: SoftFileLease) -> None:
        """Wrap an acquired lease."""
        self._lease = lease
        self.token = lease.token or ""

    def held(self) -> bool:
        """Say whether the claim is still this process's: nobody took it over in the meantime."""
        owner = self._lease.owner
        return self._lease.compromise is None and owner is not None and owner.token == self.token

    def release(self) -> None:
        """Give the claim back. A claim that somebody took over stays theirs.

        One that the file system does not let go of is nobody's news: what was done under it is done or failed by then.
        It is taken over when this process ends, or when the lease is over.
        """
        try:
            self._lease.release()
        except OSError as error:
            log.warning("the claim `%s` could not be given back: %s", self._lease.lock_file, error)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Claims:
    """The claims on the keys of a store, as one process sees them.

    Args:
        folder: the store's folder of claims.
        lease_seconds: how long a claim of another host must stay untouched to be taken over. Every process that uses
            the store must give the same number.
        heartbeat_seconds: how often a held claim is touched.
    """

    def __init__(
        self, folder: Path, *, lease_seconds: float = LEASE_SECONDS, heartbeat_seconds: float = HEARTBEAT_SECONDS
    ) -> None:
        self._folder = folder
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        # Kept while somebody else holds a key: a lease times the silence of its owner over several looks.
        self._watched: dict[str, SoftFileLease] = {}
        self._seen: dict[Path, tuple[_Look, float]] = {}

    def take(self, key: str) -> Claim | None:
        """Take the claim on a key without waiting; None if somebody else holds it.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self._folder / key
        lease = self._watched.pop(key, None) or SoftFileLease(
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
                # Also an OSError, so it must not reach the refusals of the file system.
                except Timeout:
                    self._watched[key] = lease
                    self._break_if_silent(path)
                    return None
        except LeaseSettingsMismatch as error:
            raise StoreError(
                f"Another version of the harness works in this store: {error}. Wait for it, or use one version."
            ) from None
        return Claim(lease)

    def _break_if_silent(self, path: Path) -> None:
        """Remove a claim that nobody has touched for longer than its holder may be silent.

        The library takes over claims of the dead, except where the file system cannot exchange two names (NFS), and
        except an empty one, left by a process that was killed between creating it and writing its record.
        """
        try:
            look = _look(path)
        except FileNotFoundError:
            return
        before, since = self._seen.get(path, (None, 0.0))
        if look != before:
            self._seen[path] = (look, time.monotonic())
            return
        # A live holder would have written its record, and touched it since.
        patience = self._lease_seconds + self._heartbeat_seconds if look.size else 2 * self._heartbeat_seconds
        if time.monotonic() - since > patience:
            _remove(path, look)


class _Look(NamedTuple):
    """What changes when a claim is touched, or another is made in its place."""

    inode: int
    size: int
    touched: int


def _look(path: Path) -> _Look:
    found = path.lstat()
    return _Look(found.st_ino, found.st_size, found.st_mtime_ns)


def _remove(path: Path, judged: _Look) -> None:
    aside = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{time.monotonic_ns()}")
    with suppress(FileNotFoundError):
        if _look(path) != judged:
            return
        # Of several processes that judged alike, one gets it; nobody removes what another made in its place.
        os.rename(path, aside)
        if _look(aside) != judged:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def claimed(folder: Path) -> set[str]:
    """Return the keys that a living process works on: it touches its claim."""
    now, found = time.time(), set()
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            if now - path.stat().st_mtime < LEASE_SECONDS:
                found.add(path.name)
        except FileNotFoundError:
            continue
    return found


def left_behind(folder: Path, key: str, nodes: str) -> bool:
    """Say whether the holder of a claim is known to be dead: a process of this host, or of a job that has ended.

    Args:
        folder: the store's folder of claims.
        key: the claim's.
        nodes: where a job that had the key has ended; empty if none has.
    """
    lease = SoftFileLease(folder / key, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    if (owner := lease.owner) is None:
        return False
    # What follows a question mark tells containers of a host apart.
    host = owner.hostname.partition("?")[0]
    if host == platform.node():
        return not psutil.pid_exists(owner.pid)
    return host.partition(".")[0] == nodes.partition(".")[0]


def holder(folder: Path, key: str) -> str:
    """Return who holds a claim, in words; empty if nobody does, or it has not written its record yet."""
    lease = SoftFileLease(folder / key, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else ""
