"""Naming: what a run is called, by what tells it from the others of its sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.engine.identity import key_of
from harness.report.data.conditions import differing, repeats

ORDER = ("defense", "model", "task", "attack", "ratio", "seed")
"""The labels in the order in which a name says them."""
BARE = ("defense", "model", "task", "attack")
"""The labels whose values speak for themselves."""
LONGEST = 128
"""How long a name may be that W&B keeps: of a run, of a group, of an artifact."""
LONGEST_TAG = 64
"""How long a tag may be."""
LONG = 40
"""A mark of a protocol has about as many characters at most."""


def varying(cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the labels and swept values in which cells differ; the defense always."""
    names = dict.fromkeys([*ORDER, *(name for cell in cells for name in cell["swept"])])
    apart = differing([{**cell["swept"], **cell["labels"]} for cell in cells], names)
    return tuple(name for name in names if name == "defense" or name in apart)


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
        For each cell the settings that differ and do not only repeat a swept value, as far as they are short; a hash
        stands for others. Empty texts where all were trained and evaluated alike.
    """
    swept = dict.fromkeys(name for cell in cells for name in cell["swept"])
    told = [[_text(_value(cell, name)) for cell in cells] for name in swept]
    groups = [(cell["labels"].get("task"), cell["labels"].get("model")) for cell in cells]
    differing = []
    for name in dict.fromkeys(name for protocol in protocols for name in protocol):
        texts = [_text(protocol.get(name)) for protocol in protocols]
        apart = len(set(zip(groups, texts, strict=True))) > len(set(groups))
        if apart and name not in swept and not any(repeats(texts, others) for others in told):
            differing.append(name)
    return [_mark({name: protocol.get(name) for name in differing}) for protocol in protocols]


def fitted(text: str, longest: int = LONGEST) -> str:
    """Return a name in one line, as long as W&B takes it: of a longer one the beginning, and a hash of the whole."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 9].rstrip()}-{key_of(text)[:8]}"


def _mark(settings: Mapping[str, Any]) -> str:
    words = {name: _text(value) for name, value in settings.items() if value is not None}
    text, left = "", {}
    for name, word in words.items():
        first, last = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
        longer = f"{text} {'.'.join(dict.fromkeys((first, last)))}={word}".strip()
        # An item of a list says little alone.
        if len(longer) <= LONG and not last.isdigit():
            text = longer
        else:
            left[name] = word
    return f"{text} +{key_of(left)[:4]}".strip() if left else text


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(cell: Mapping[str, Any], name: str) -> Any:
    return cell["labels"][name] if name in cell["labels"] else cell["swept"].get(name)
