"""External classes: those of other packages that stages use, such as the methods of a laboratory.

Results are identified by the name and version of a class, not by its code. The harness's own code is in a repository
and its commit in every manifest; of an external class, the source files are all that tells whether it has changed.
"""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from harness.engine.build import TARGET
from harness.engine.classes import PACKAGE
from harness.engine.stage import Stage
from harness.engine.statement import statement_in


class Described(TypedDict):
    """What a manifest says about an external class.

    Attributes:
        name: its name in keys.
        version: its version in keys.
        code: digest of the files that define it and its external bases.
        fidelity: statement in the header of its module; empty if there is none.
    """

    name: str
    version: int
    code: str
    fidelity: str


def external_classes(stage: Stage) -> dict[str, Described]:
    """Return what there is to know of the external classes in a stage's settings, by import path; mostly none."""
    return {path_of(cls): _described(cls) for cls in _classes(stage) if not _is_own(cls)}


def external_paths(spec: object) -> set[str]:
    """Return the import paths of the external classes in a stage's spec, as ``describe`` returned it."""
    if isinstance(spec, Mapping):
        found = {path for part in spec.values() for path in external_paths(part)}
        target = spec.get(TARGET)
        return found | {target} if isinstance(target, str) and _is_external(target) else found
    if isinstance(spec, list):
        return {path for part in spec for path in external_paths(part)}
    return set()


def path_of(cls: type) -> str:
    """Return the import path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _classes(value: object) -> Iterator[type]:
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        parts: list[Any] = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, tuple | Mapping):
        parts = list(value.values() if isinstance(value, Mapping) else value)
    else:
        return
    for part in parts:
        if not isinstance(part, Stage):
            yield from _classes(part)


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == PACKAGE


def _is_external(target: str) -> bool:
    # Own classes are stored by name, those without one by import path.
    return "/" not in target and target.partition(".")[0] != PACKAGE


@cache
def _described(cls: type) -> Described:
    name, version = getattr(cls, "name", cls.__qualname__), getattr(cls, "version", 0)
    header = sys.modules[cls.__module__].__doc__
    return Described(name=name, version=version, code=_digest(cls), fidelity=statement_in(header))


def _digest(cls: type) -> str:
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if not _is_own(base) and (source := _source(base)) is not None:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _source(cls: type) -> Path | None:
    try:
        found = inspect.getsourcefile(cls)
    except TypeError:  # a class of the interpreter
        return None
    return Path(found) if found and Path(found).is_file() else None
