"""The names of the package's own classes in stored data: ``kind/name@version``, whatever module they live in.

A name outlives the module: code may be moved and renamed, and a store that was written before is still read. Classes of
other packages go by their import path, since only that says where to find them.
"""

import re
from collections.abc import Sequence
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
    "tasks": "task",
    "judges": "judge",
    "tracking": "tracker",
}
"""What the classes of a folder are called. Those of every other one are settings, wherever they live."""
_SETTINGS = "settings"
_NAME = re.compile(r"([a-z]+)/([^@]+)@(\d+)")
_LINE = re.compile(r"""class (?P<cls>\w+)|    (?P<item>name|version): ClassVar\[(?:str|int)\] = (?P<value>.+)""")


class Named(NamedTuple):
    """A class of the package: what it is called, and where it is."""

    kind: str
    name: str
    version: int
    path: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}@{self.version}"


@cache
def name_of(cls: type) -> str:
    """Return what stored data call a class."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    found = next((named for named in installed() if named.path == path), None)
    return str(found) if found else path


def is_name(text: str) -> bool:
    """Say whether a text is the name of a class of the package, and no import path."""
    return _NAME.fullmatch(text) is not None


def paths_of(text: str) -> Sequence[str]:
    """Return the import paths of the classes that a name or an import path may mean.

    Two classes may have one name, such as the parts of a method that acts in two slots; what they are wanted for tells
    them apart.
    """
    if (match := _NAME.fullmatch(text)) is None:
        return [current(text)]
    return [named.path for named in installed() if str(named) == match[0]]


def versions_of(text: str) -> Sequence[int]:
    """Return in which versions a named class is installed."""
    match = _NAME.fullmatch(text)
    return [named.version for named in installed() if match and (named.kind, named.name) == (match[1], match[2])]


def label_of(text: str) -> str:
    """Return what a reader calls a class: the last part of its import path."""
    return next(iter(paths_of(text)), text).rpartition(".")[2]


@cache
def installed() -> tuple[Named, ...]:
    """Return the classes of the package that have a name and a version.

    Found in the source: importing every module to look would load torch into each process that plans.
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
