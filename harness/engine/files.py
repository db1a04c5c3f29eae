"""Files of the store: atomic writing, and refusals of the file system as errors that their reader can mend."""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from harness.errors import StoreError

log = logging.getLogger(__name__)
CUT = b"\x18\n"
"""How a line that a full disk cut is ended when the next one is written: ASCII's sign that what precedes is void."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_serial = count()


def is_full(error: BaseException) -> bool:
    """Say whether an error means that a disk or a quota is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the host has no memory left; torch and NumPy have words of their own for it."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system while ``path`` is written into a ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"The store cannot be written: {_reason(error, path)}") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system while ``path`` is read, or broken JSON in it, into a ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"The store cannot be read: `{path}`: {error.strerror or error}.") from None
    except ValueError as error:
        raise StoreError(
            f"The store cannot be read: `{path}` is not valid JSON ({error}). Delete the file; the next run writes it."
        ) from None


def _reason(error: OSError, path: Path) -> str:
    place = f"`{error.filename or path}`"
    if error.errno in _FULL:
        return f"the disk or quota is full at {place}. Free some space and run again; nothing stored is harmed."
    if error.errno in _FORBIDDEN:
        return f"{place} is read-only ({error.strerror}). Choose a store folder that you may write to."
    if error.errno in _NOT_A_FOLDER:
        return f"{place} is in the way: a file where a folder is expected. Choose another store folder or move it."
    if error.errno == errno.EXDEV:
        return f"{place} is on another file system than the rest of the store. Keep the whole store on one."
    return f"{place}: {error.strerror or error}."


def write_json(path: Path, data: Any, *, durable: bool = False) -> None:
    """Write JSON so that a reader sees the whole file or none, even if this process dies.

    Args:
        path: the file; its folder exists.
        data: plain JSON values.
        durable: also survive a loss of power.

    Raises:
        OSError: the file system refused.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # The file system may be shared, so the process id alone would not do.
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
    """Force the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, data: Any) -> None:
    """Append one line of JSON. One system call, so that lines of several processes do not mix.

    Raises:
        OSError: the file system refused; a full disk may have taken a part of the line.
    """
    line = (json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = CUT + line
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def read_lines(path: Path, damaged: Callable[[int], None] | None = None) -> list[Any]:
    """Return what was appended to a file, oldest first.

    A line that a full disk cut is left out, and so is one that is no JSON, as a crash may leave it.

    Args:
        path: the file; one that does not exist has no lines.
        damaged: is told the number of each line that is no JSON, from 1; without it that is logged.

    Raises:
        StoreError: the file cannot be read.
    """
    with reading(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n") or line.endswith(CUT):
            continue
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if damaged is not None:
                damaged(number)
            else:
                log.warning("line %d of `%s` is left out: it is not valid JSON (%s)", number, path, error)
    return found
