"""Naming: what a run is called, by what tells it from the others of its sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

ORDER = ("defense", "model", "task", "attack", "ratio", "seed")
"""The labels in the order in which a name says them."""
BARE = ("defense", "model", "task", "attack")
"""The labels whose values speak for themselves."""


def varying(cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the labels and swept values in which cells differ; the defense always."""
    names = dict.fromkeys([*ORDER, *(name for cell in cells for name in cell["swept"])])
    values = {name: {str(_value(cell, name)) for cell in cells} for name in names}
    return tuple(name for name in names if name == "defense" or len(values[name]) > 1)


def common(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the labels that cells share. Defenses that share a stage are all named."""
    labels: dict[str, Any] = {}
    for name in ORDER:
        values = list(dict.fromkeys(cell["labels"].get(name) for cell in cells))
        if len(values) == 1:
            labels[name] = values[0]
        elif name == "defense":
            labels[name] = "+".join(sorted(map(str, values)))
    return labels


def title(kind: str, values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a run's name: its kind, and those of the values that have one of the names."""
    words = [kind] if kind else []
    for name in names:
        if values.get(name) is not None:
            value = values[name]
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(shown if name in BARE else f"{name.rsplit('.', 1)[-1]}={shown}")
    return " ".join(words)


def _value(cell: Mapping[str, Any], name: str) -> Any:
    return cell["labels"][name] if name in cell["labels"] else cell["swept"].get(name)
