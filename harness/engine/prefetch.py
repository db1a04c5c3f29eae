"""Prefetch: finds the pinned files and models within settings and stages that can be downloaded ahead of a run."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Fetchable(Protocol):
    """Something that can be downloaded ahead of a run."""

    def fetch(self) -> object:
        """Download it unless it is already on this machine; return its location.

        Raises:
            DataError: a data set cannot be obtained.
            ModelError: a model cannot be obtained.
        """
        ...


@runtime_checkable
class Locatable(Fetchable, Protocol):
    """A ``Fetchable`` that can tell whether it is on this machine."""

    def at_hand(self) -> bool:
        """Return whether it is already on this machine."""
        ...


def fetchables(values: Iterable[object]) -> dict[str, Fetchable]:
    """Return everything within settings or stages that can be fetched, without duplicates."""
    # The stages of a sweep share most of their settings: visit each object once.
    seen: dict[int, object] = {}
    return {repr(part): part for value in values for part in _walk(value, seen)}


def _walk(value: object, seen: dict[int, object]) -> Iterator[Fetchable]:
    if isinstance(value, tuple):
        for part in value:
            yield from _walk(part, seen)
    elif is_dataclass(value) and not isinstance(value, type) and id(value) not in seen:
        seen[id(value)] = value
        if isinstance(value, Fetchable):
            yield value
        for item in fields(value):
            yield from _walk(getattr(value, item.name), seen)
