"""What comes from outside of this machine: pinned files and models, found inside settings and stages."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Fetchable(Protocol):
    """Something that can be had beforehand."""

    def fetch(self) -> object:
        """Bring it here, unless it is here already; return where it is.

        Raises:
            DataError: rows cannot be had.
            ModelError: a model cannot be had.
        """
        ...


@runtime_checkable
class Locatable(Fetchable, Protocol):
    """Something of which is known where it is."""

    def at_hand(self) -> bool:
        """Return whether it is here."""
        ...


def fetchables(values: Iterable[object]) -> dict[str, Fetchable]:
    """Return everything inside settings or stages that can be fetched, once each."""
    # The stages of a sweep share most of their settings: each object is looked into once.
    seen: dict[int, object] = {}
    return {repr(part): part for value in values for part in _inside(value, seen)}


def _inside(value: object, seen: dict[int, object]) -> Iterator[Fetchable]:
    if isinstance(value, tuple):
        for part in value:
            yield from _inside(part, seen)
    elif is_dataclass(value) and not isinstance(value, type) and id(value) not in seen:
        seen[id(value)] = value
        if isinstance(value, Fetchable):
            yield value
        for item in fields(value):
            yield from _inside(getattr(value, item.name), seen)
