"""The named sources: ``data/sources.yaml`` and what a user's own file lays over it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
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
"""Names the folder with the user's data files; it may hold a ``sources.yaml`` too."""
SOURCES_VARIABLE = "HARNESS_SOURCES"
"""Names a user's own sources file."""


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file below ``HARNESS_DATA``.

    Attributes:
        path: below that folder.
        format: its layout.
        columns: names for the columns of a table without a header.
        sha256: of the file, if one particular file is meant.
    """

    path: str
    format: Format
    columns: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a dataset on the Hub.

    Attributes:
        repo: the dataset.
        revision: the pinned commit, 40 hex digits; null if none is known.
        path: inside the dataset.
        format: its layout.
        columns: names for the columns of a table without a header.
        sha256: of the file, if known.
        gated: whether the Hub asks for a token of an account that accepted its terms.
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
    """A named source: where its rows lie, and what one needs to know before using them."""

    about: str = ""
    roles: tuple[Role, ...] = ()
    licence: str = "not stated"
    homepage: str = ""
    file: LocalFile | None = None
    hub: HubFile | None = None


def entry(name: str) -> Entry:
    """Return a source by name.

    Raises:
        ConfigError: there is no such source, or a sources file is wrong.
    """
    known = catalogue()
    if name not in known:
        raise ConfigError(
            [
                f"unknown data source `{name}`{close_to(name, known)}. Known: {quoted(sorted(known))}. "
                f"Add it to data/sources.yaml, or to a sources file of your own named by {SOURCES_VARIABLE}"
            ]
        )
    return known[name]


def catalogue() -> Mapping[str, Entry]:
    """Return every named source; a user's entries are laid over those of the house, key by key.

    Raises:
        ConfigError: a sources file is missing or wrong; carries all problems.
    """
    named, folder = os.environ.get(SOURCES_VARIABLE), data_folder()
    beside = [folder / "sources.yaml"] if folder and (folder / "sources.yaml").is_file() else []
    own = [folder_of(named, SOURCES_VARIABLE)] if named else []
    return _built((_house_file(), *beside, *own))


def published() -> frozenset[str]:
    """Return the checksums of the files that the shipped catalogue pins."""
    files = (file for known in _built((_house_file(),)).values() for file in (known.file, known.hub))
    return frozenset(file.sha256 for file in files if file and file.sha256)


def data_folder() -> Path | None:
    """Return the user's data folder, or None if the environment names none.

    Raises:
        ConfigError: it names something that is not a folder.
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


def _house_file() -> Path:
    package = Path(__file__).parents[1]
    shipped = package / "data" / "sources.yaml"
    return shipped if shipped.is_file() else package.parent / "data" / "sources.yaml"


@lru_cache(maxsize=8)
def _built(paths: tuple[Path, ...]) -> Mapping[str, Entry]:
    merged: dict[str, Any] = {}
    last_in: dict[str, Path] = {}
    for path in paths:
        content = _content(path)
        merged = _laid_over(merged, content)
        last_in |= dict.fromkeys(content, path)
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    for name, fields in merged.items():
        file = str(last_in[name])
        try:
            entries[name] = build(Entry, fields, path=name, where=partial(_always, file))
        except ConfigError as error:
            problems += error.problems
            continue
        if entries[name].file is None and entries[name].hub is None:
            lacking = f"no origin; expected `file`, `hub` or both. Set in `{last_in[name]}`."
            problems.append(Problem(name, lacking))
    if problems:
        raise ConfigError(problems)
    return entries


def _always(place: str, _path: str) -> str:
    return place


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(
            [f"`{SOURCES_VARIABLE}`: {path} cannot be read: {error.strerror}; expected a file in YAML"]
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # YAML's reader lets through what Python says of bytes that are no UTF-8, of a 13th month, of 5,000 digits.
        words = " ".join(str(error).split())
        raise ConfigError([f"`{SOURCES_VARIABLE}`: {path} is not valid YAML: {words}"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"`{SOURCES_VARIABLE}`: {path} holds no mapping; expected source names with their entries"])
    if wrong := [name for name in content if not isinstance(name, str)]:
        raise ConfigError([f"`{SOURCES_VARIABLE}`: {path}: `{name}` is no text; expected a name." for name in wrong])
    return content


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in below.keys() & above.keys() if isinstance(below[key], dict) and isinstance(above[key], dict)}
    return below | above | {key: _laid_over(below[key], above[key]) for key in both}
