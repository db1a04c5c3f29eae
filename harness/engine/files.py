"""Files of the store: atomic writes, and file system errors as messages that say how to fix them."""

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any

from harness.errors import StoreError, UnreadableFile

log = logging.getLogger(__name__)
MIB = 2**20
SMALL = 16 * MIB
"""Size limit in bytes of a manifest, a spec or a summary."""
LARGE = 1024 * MIB
"""Size limit in bytes of a sweep record and of files with one line per example or event."""
TRUNCATED = b"\x18\n"
"""Appended to a line truncated by a full disk, before the next line: ASCII CAN, "disregard what precedes"."""
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_serial = count()


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one in its chain of causes, means that the disk or quota is full.

    Libraries raise their own exceptions for it: safetensors quotes the errno in its message, torch's archive writer
    only says that the write failed.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if any(f"os error {code})" in text or os.strerror(code) in text for code in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_problem(folder: Path, *, size: int = MIB) -> str:
    """Return why a file of ``size`` bytes cannot be written to a folder right now; empty if it can."""
    probe = probe_in(folder)
    try:
        with writing(folder), probe.open("xb") as stream:
            stream.write(bytes(size))
            stream.flush()
            os.fsync(stream.fileno())
    except StoreError as error:
        return str(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


def probe_in(folder: Path) -> Path:
    """Return the path of an entry that no other process makes, to try what a folder allows."""
    return folder / f".probe-{os.uname().nodename}-{os.getpid()}.{next(_serial)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that host memory is exhausted; torch has its own message for it."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an ``OSError`` while ``path`` is written into a ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"The store cannot be written: {_reason(error, path)}") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert an ``OSError`` or invalid JSON while ``path`` is read into an ``UnreadableFile``."""
    try:
        yield
    except OSError as error:
        raise UnreadableFile(f"The store cannot be read: `{path}`: {error.strerror or error}.") from None
    # RecursionError: nested too deeply for the parser.
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"The store cannot be read: `{path}` is not valid JSON ({error}).") from None


def open_regular(path: Path, *, limit: int = LARGE) -> BufferedReader:
    """Open a regular file for reading; a directory, device or pipe is an error, as it may be endless or block.

    Args:
        path: the file, or a link to one.
        limit: maximum size in bytes.

    Raises:
        UnreadableFile: it is not a regular file, is too large, or cannot be opened.
    """
    with reading(path):
        # A plain `open` of a pipe blocks until a writer appears.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(handle)
    problem = ""
    if not stat.S_ISREG(info.st_mode):
        problem = f"it is {_kind(info.st_mode)}; expected a regular file"
    elif info.st_size > limit:
        problem = f"it has {info.st_size} bytes; expected {limit} at most"
    if problem:
        os.close(handle)
        raise UnreadableFile(f"The store cannot be read: `{path}`: {problem}.")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, *, limit: int = LARGE) -> bytes:
    """Return the content of a regular file.

    Raises:
        UnreadableFile: see ``open_regular``.
    """
    with open_regular(path, limit=limit) as stream, reading(path):
        return stream.read(limit)


def read_json(path: Path, *, limit: int = SMALL) -> Any:
    """Return the JSON in a regular file.

    Raises:
        UnreadableFile: it is not JSON; see also ``open_regular``.
    """
    content = read_bytes(path, limit=limit)
    with reading(path):
        return json.loads(content)


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")


def _reason(error: OSError, path: Path) -> str:
    location = f"`{error.filename or path}`"
    if error.errno in _DISK_FULL:
        return f"the disk or quota is full at {location}. Free some space and run again; nothing stored is harmed."
    if error.errno in _NOT_WRITABLE:
        return f"{location} is read-only ({error.strerror}). Choose a store folder that you may write to."
    if error.errno in _NOT_A_FOLDER:
        return f"{location} is a file; expected a directory. Choose another store directory, or move the file."
    if error.errno == errno.EXDEV:
        return f"{location} is on another file system than the rest of the store. Keep the whole store on one."
    return f"{location}: {error.strerror or error}."


def write_json(path: Path, data: Any, *, durable: bool = False) -> None:
    """Write JSON atomically: a reader sees the complete file or none, even if this process dies.

    Args:
        path: the file; its folder exists.
        data: plain JSON values.
        durable: also sync to disk, to survive a power failure.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # The file system may be shared between hosts, so the process id is not unique.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{next(_serial)}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a directory to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, data: Any) -> None:
    """Append one line of JSON, in a single system call, so that lines of concurrent processes do not interleave.

    Raises:
        OSError: the write failed; on a full disk, part of the line may have been written.
    """
    line = (json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = TRUNCATED + line
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def read_lines(path: Path, damaged: Callable[[int], None] | None = None) -> list[Any]:
    """Return the values appended to a file, oldest first.

    Skips lines that were truncated by a full disk, and lines that are not valid JSON, which a crash can leave.

    Args:
        path: the file; if it does not exist, there are no lines.
        damaged: called with the number (from 1) of each line that is not JSON; by default a warning is logged.

    Raises:
        UnreadableFile: it is not a regular file, or cannot be read.
    """
    if not path.exists():
        return []
    values = []
    for number, line in enumerate(read_bytes(path).splitlines(keepends=True), start=1):
        if not line.endswith(b"\n") or line.endswith(TRUNCATED):
            continue
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if damaged is not None:
                damaged(number)
            else:
                log.warning("line %d of `%s` is skipped: it is not valid JSON (%s)", number, path, error)
    return values
