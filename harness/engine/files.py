"""Files of the store: atomic writing, and refusals of the file system as errors that their reader can mend."""

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
"""At most so many bytes: a manifest, a spec, a summary."""
LARGE = 1024 * MIB
"""At most so many bytes: the record of a sweep, and files of one line for each row or each event."""
CUT = b"\x18\n"
"""How a line that a full disk cut is ended when the next one is written: ASCII's sign that what precedes is void."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_serial = count()


def is_full(error: BaseException | None) -> bool:
    """Say whether an error, or one that led to it, means that a disk or a quota is used up.

    Libraries that write by themselves have errors of their own for it: safetensors quotes the number of the system's
    error, torch's writer of archives says only that it could not write.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(f"os error {code})" in text or os.strerror(code) in text for code in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_problem(folder: Path, *, size: int = MIB) -> str:
    """Say why a file of so many bytes cannot be written in a folder at this moment; nothing if it can."""
    probe = folder / f".probe-{os.uname().nodename}-{os.getpid()}.{next(_serial)}"
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
    """Turn a refusal of the file system while ``path`` is read, or broken JSON in it, into an ``UnreadableFile``."""
    try:
        yield
    except OSError as error:
        raise UnreadableFile(f"The store cannot be read: `{path}`: {error.strerror or error}.") from None
    # Brackets that are nested too deeply for the parser are no JSON of ours either.
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"The store cannot be read: `{path}` is not valid JSON ({error}).") from None


def opened(path: Path, *, limit: int = LARGE) -> BufferedReader:
    """Open a regular file for reading: no folder, device or pipe, which might be endless or keep the reader waiting.

    Args:
        path: the file, or a link to one.
        limit: how many bytes it may have at most.

    Raises:
        UnreadableFile: it is something else, larger, or the file system refused.
    """
    with reading(path):
        # A pipe would keep a plain `open` waiting for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(handle)
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = f"it is {_kind(found.st_mode)}; expected a regular file"
    elif found.st_size > limit:
        problem = f"it has {found.st_size} bytes; expected {limit} at most"
    if problem:
        os.close(handle)
        raise UnreadableFile(f"The store cannot be read: `{path}`: {problem}.")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, *, limit: int = LARGE) -> bytes:
    """Return the content of a regular file.

    Raises:
        UnreadableFile: see ``opened``.
    """
    with opened(path, limit=limit) as stream, reading(path):
        return stream.read(limit)


def read_json(path: Path, *, limit: int = SMALL) -> Any:
    """Return the JSON in a regular file.

    Raises:
        UnreadableFile: it is not JSON; see also ``opened``.
    """
    content = read_bytes(path, limit=limit)
    with reading(path):
        return json.loads(content)


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "a device")


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
        UnreadableFile: it is no regular file, or the file system refused.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(read_bytes(path).splitlines(keepends=True), start=1):
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
