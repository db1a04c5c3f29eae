"""Names of the package's classes in stored data: ``kind/name@version``, independent of their module.

Code can therefore be moved and renamed without making existing stores unreadable. Classes of other packages are stored
by import path, which is needed to find them.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from harness.engine.moved import current

PACKAGE = "harness"
_KINDS = {
    "stages": "stage",
    "defenses": "defense",
    "attacks": "attack",
    "fusions": "fusion",
    "aggregators": "aggregator",
    "tasks": "task",
    "judges": "judge",
    "ensembles": "ensemble",
    "estimators": "estimator",
    "serving": "serving",
    "tracking": "tracker",
}
"""Kind of the classes in each folder; classes in any other folder are ``settings``."""
_SETTINGS = "settings"
_NAME = re.compile(r"([a-z]+)/([^@]+)@(\d+)")
_LINE = re.compile(r"""class (?P<cls>\w+)|    (?P<item>name|version): ClassVar\[(?:str|int)\] = (?P<value>.+)""")


class Named(NamedTuple):
    """A named class of the package and its import path."""

    kind: str
    name: str
    version: int
    path: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}@{self.version}"


@cache
def name_of(cls: type) -> str:
    """Return the name of a class in stored data; its import path if it has none."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    found = next((named for named in installed() if named.path == path), None)
    return str(found) if found else path


def is_name(text: str) -> bool:
    """Return whether a text has the form ``kind/name@version`` rather than an import path."""
    return _NAME.fullmatch(text) is not None


def paths_of(text: str) -> Sequence[str]:
    """Return the import paths of the classes that a name or an import path may refer to.

    Two classes may share a name, such as the parts of a method that acts in two slots; the expected type selects one.
    """
    if (match := _NAME.fullmatch(text)) is None:
        return [current(text)]
    return _paths_by_name().get(match[0], ())


@cache
def _paths_by_name() -> Mapping[str, Sequence[str]]:
    paths: dict[str, list[str]] = {}
    for named in installed():
        paths.setdefault(str(named), []).append(named.path)
    return paths


def versions_of(text: str) -> Sequence[int]:
    """Return the installed versions of a named class."""
    match = _NAME.fullmatch(text)
    return [named.version for named in installed() if match and (named.kind, named.name) == (match[1], match[2])]


def classes_named(folder: str, name: str) -> Sequence[str]:
    """Return the import paths of the installed classes of a folder that have a name."""
    return [named.path for named in installed() if (named.kind, named.name) == (_KINDS[folder], name)]


def label_of(text: str) -> str:
    """Return the short name of a class: the last part of its import path."""
    return next(iter(paths_of(text)), text).rpartition(".")[2]


@cache
def installed() -> tuple[Named, ...]:
    """Return the classes of the package that have a name and a version.

    Parsed from the source: importing every module would load torch into each planning process.
    """
    return tuple(_in_folder(files(PACKAGE), PACKAGE))


def _in_folder(folder: Traversable, package: str) -> list[Named]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _in_folder(entry, f"{package}.{entry.name}")
        elif entry.name.endswith(".py"):
            module = package if entry.name == "__init__.py" else f"{package}.{entry.name.removesuffix('.py')}"
            found += _in_module(entry.read_text("utf-8"), module)
    return found


def _in_module(source: str, module: str) -> list[Named]:
    folder = module.split(".")[1] if module.count(".") else ""
    found: dict[str, dict[str, str]] = {}
    cls = ""
    for line in source.splitlines():
        match = _LINE.match(line)
        if match and match["cls"]:
            cls = match["cls"]
        elif match and cls:
            found.setdefault(cls, {})[match["item"]] = match["value"].strip("\"'")
    kind = _KINDS.get(folder, _SETTINGS)
    return [
        Named(kind, items["name"], int(items["version"]), f"{module}.{cls}")
        for cls, items in found.items()
        if items.keys() == {"name", "version"}
    ]
