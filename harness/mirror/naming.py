"""Naming: what a run is called, by what tells it from the others of its sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.engine.identity import key_of

ORDER = ("defense", "model", "task", "attack", "ratio", "seed")
"""The labels in the order in which a name says them."""
BARE = ("defense", "model", "task", "attack")
"""The labels whose values speak for themselves."""
LONG = 40
"""A mark of a protocol with more characters is a hash instead."""


def varying(cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the labels and swept values in which cells differ; the defense always."""
    names = dict.fromkeys([*ORDER, *(name for cell in cells for name in cell["swept"])])
    values = {name: {str(_value(cell, name)) for cell in cells} for name in names}
    return tuple(name for name in names if name == "defense" or len(values[name]) > 1)


def common(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the labels that cells share. Defenses that share a stage are all named; what else differs is None.

    A None is sent as well: a label that was shared by fewer cells once must not stay.
    """
    labels: dict[str, Any] = {}
    for name in ORDER:
        values = list(dict.fromkeys(cell["labels"].get(name) for cell in cells))
        if len(values) == 1:
            labels[name] = values[0]
        elif name == "defense":
            labels[name] = "+".join(sorted(map(str, values)))
        else:
            labels[name] = None
    return labels


def title(kind: str, values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a run's name: its kind, and those of the values that have one of the names."""
    words = [kind] if kind else []
    for name in names:
        if values.get(name) is not None:
            shown = _text(values[name])
            words.append(shown if name in BARE else f"{name.rsplit('.', 1)[-1]}={shown}")
    return " ".join(words)


def marks(cells: Sequence[Mapping[str, Any]], protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what tells the protocol of each cell from those of other cells of its task and model.

    Args:
        cells: of one sweep.
        protocols: how each was trained and evaluated, by dotted name.

    Returns:
        For each cell the settings that differ, but for swept ones; a hash of them where they are many. Empty texts
        where all were trained and evaluated alike.
    """
    swept = dict.fromkeys(name for cell in cells for name in cell["swept"])
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    free = [name for name in names if not any(name == told or name.startswith(f"{told}.") for told in swept)]
    found: dict[tuple[Any, ...], set[str]] = {}
    for cell, protocol in zip(cells, protocols, strict=True):
        for name in free:
            place = (cell["labels"].get("task"), cell["labels"].get("model"), name)
            found.setdefault(place, set()).add(_text(protocol.get(name)))
    differing = [name for name in free if any(place[-1] == name and len(texts) > 1 for place, texts in found.items())]
    return [_mark({name: protocol.get(name) for name in differing}) for protocol in protocols]


def _mark(settings: Mapping[str, Any]) -> str:
    words = {name: _text(value) for name, value in settings.items() if value is not None}
    text = " ".join(f"{'.'.join(dict.fromkeys(_ends(name)))}={word}" for name, word in words.items())
    return text if len(text) <= LONG else f"protocol={key_of(words)[:4]}"


def _ends(name: str) -> tuple[str, str]:
    """Return the first and the last word of a dotted name: `finetune` and `epochs` of `finetune.budget.epochs`."""
    return name.split(".", 1)[0], name.rsplit(".", 1)[-1]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(cell: Mapping[str, Any], name: str) -> Any:
    return cell["labels"][name] if name in cell["labels"] else cell["swept"].get(name)
