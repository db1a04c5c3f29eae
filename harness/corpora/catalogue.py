"""The catalogue of named data sources: ``data/sources.yaml``, merged with the user's own sources files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from harness.corpora.examples import Role
from harness.corpora.formats import Format
from harness.engine.build import build
from harness.engine.folder import folder as folder_of
from harness.engine.messages import close_to, quoted
from harness.errors import ConfigError, Problem

DATA_VARIABLE = "HARNESS_DATA"
"""Environment variable with the path of the user's data folder, which may contain a ``sources.yaml``."""
SOURCES_VARIABLE = "HARNESS_SOURCES"
"""Environment variable with the path of a user's own sources file."""


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file in the folder ``HARNESS_DATA``.

    Attributes:
        path: relative to that folder.
        format: the file format.
        columns: column names of a table without a header.
        sha256: checksum of the file; None accepts any content.
    """

    path: str
    format: Format
    columns: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a dataset on the Hub.

    Attributes:
        repo: the dataset repository.
        revision: the pinned commit, 40 hex digits; null if none is known.
        path: relative to the repository.
        format: the file format.
        columns: column names of a table without a header.
        sha256: checksum of the file, if known.
        gated: whether the Hub requires the token of an account that accepted the dataset's terms.
    """

    repo: str
    revision: str | None = None
    path: str
    format: Format
    columns: tuple[str, ...] = ()
    sha256: str | None = None
    gated: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named source: where its data is, and its description, roles and licence."""

    about: str = ""
    roles: tuple[Role, ...] = ()
    licence: str = "not stated"
    homepage: str = ""
    file: LocalFile | None = None
    hub: HubFile | None = None


def entry(name: str) -> Entry:
    """Return a source by name.

    Raises:
        ConfigError: there is no such source, or a sources file is invalid.
    """
    known = catalogue()
    if name not in known:
        raise ConfigError(
            [
                f"unknown data source `{name}`{close_to(name, known)}. Known: {quoted(sorted(known))}. "
                f"Add it to data/sources.yaml, or to your own sources file and set {SOURCES_VARIABLE} to its path"
            ]
        )
    return known[name]


def catalogue() -> Mapping[str, Entry]:
    """Return all named sources; the user's entries are merged into the shipped ones, key by key.

    Raises:
        ConfigError: a sources file is missing or invalid; carries all problems.
    """
    try:
        named, folder = os.environ.get(SOURCES_VARIABLE), data_folder()
        in_data_folder = [folder / "sources.yaml"] if folder and (folder / "sources.yaml").is_file() else []
        own = [folder_of(named, SOURCES_VARIABLE)] if named else []
        return _load((_shipped_file(), *in_data_folder, *own))
    except ConfigError as error:
        raise ConfigError([replace(problem, placed=True) for problem in error.problems]) from None


def published() -> frozenset[str]:
    """Return the checksums of the files pinned by the shipped catalogue."""
    files = (file for known in _load((_shipped_file(),)).values() for file in (known.file, known.hub))
    return frozenset(file.sha256 for file in files if file and file.sha256)


def data_folder() -> Path | None:
    """Return the user's data folder, or None if ``HARNESS_DATA`` is not set.

    Raises:
        ConfigError: the path is not a folder.
    """
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    folder = folder_of(named, DATA_VARIABLE)
    if not folder.is_dir():
        raise ConfigError(
            [f"`{DATA_VARIABLE}`: {named} is not a folder; expected one with the files of data/sources.yaml"]
        )
    return folder


def _shipped_file() -> Path:
    package = Path(__file__).parents[1]
    shipped = package / "data" / "sources.yaml"
    return shipped if shipped.is_file() else package.parent / "data" / "sources.yaml"


@lru_cache(maxsize=8)
def _load(paths: tuple[Path, ...]) -> Mapping[str, Entry]:
    merged: dict[str, Any] = {}
    last_in: dict[str, Path] = {}
    for path in paths:
        content = _content(path)
        merged = _merge(merged, content)
        last_in |= dict.fromkeys(content, path)
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    for name, fields in merged.items():
        file = str(last_in[name])
        try:
            entries[name] = build(Entry, _without_nulls(fields), path=name, where=partial(_constant, file))
        except ConfigError as error:
            problems += error.problems
            continue
        if entries[name].file is None and entries[name].hub is None:
            text = f"no origin; expected `file`, `hub` or both. Set in `{last_in[name]}`."
            problems.append(Problem(name, text))
    if problems:
        raise ConfigError(problems)
    return entries


def _constant(file: str, _path: str) -> str:
    return file


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(
            [f"`{SOURCES_VARIABLE}`: {path} cannot be read: {error.strerror}; expected a file in YAML"]
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Besides YAMLError, PyYAML raises ValueError for invalid UTF-8, impossible dates and integers that are too
        # long.
        text = " ".join(str(error).split())
        raise ConfigError([f"`{SOURCES_VARIABLE}`: {path} is not valid YAML: {text}"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"`{SOURCES_VARIABLE}`: {path} is not a mapping; expected source names with their entries"])
    if wrong := [name for name in content if not isinstance(name, str)]:
        raise ConfigError(
            [f"`{SOURCES_VARIABLE}`: {path}: `{name}` is not a string; expected a name." for name in wrong]
        )
    return content


def _without_nulls(fields: Any) -> Any:
    """Return the fields of an entry without those that are null: so a file takes away what an earlier one sets."""
    if not isinstance(fields, dict):
        return fields
    return {name: _without_nulls(value) for name, value in fields.items() if value is not None}


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key for key in base.keys() & override.keys() if isinstance(base[key], dict) and isinstance(override[key], dict)
    }
    return base | override | {key: _merge(base[key], override[key]) for key in nested}
