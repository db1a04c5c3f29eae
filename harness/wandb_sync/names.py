"""Names of runs, built from the labels and settings in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.engine.identity import key_of
from harness.report.data.conditions import differing, repeats

ORDER = ("defense", "model", "task", "attack", "ratio", "seed")
"""Labels, in the order of a name."""
BARE = ("defense", "model", "task", "attack")
"""Labels that appear in a name as values only, without ``label=``."""
LONGEST = 128
"""Maximum length of the name of a run, group or artifact in W&B."""
LONGEST_TAG = 64
"""Maximum length of a tag in W&B."""
LONG = 40
"""Approximate maximum length of a protocol suffix."""


def varying(cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of labels and swept settings in which cells differ, and always the defense."""
    names = dict.fromkeys([*ORDER, *(name for cell in cells for name in cell["swept"])])
    different = differing([{**cell["swept"], **cell["labels"]} for cell in cells], names)
    return tuple(name for name in names if name == "defense" or name in different)


def common_labels(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the labels that all cells share; for differing defenses all of them, for other differing labels None.

    None values are uploaded too: they replace labels that were common to an earlier, smaller set of cells.
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
    """Return the name of a run: its kind, and the given values that are not None."""
    parts = [kind] if kind else []
    for name in names:
        if values.get(name) is not None:
            text = _text(values[name])
            parts.append(text if name in BARE else f"{name.rsplit('.', 1)[-1]}={text}")
    return " ".join(parts)


def protocol_suffixes(cells: Sequence[Mapping[str, Any]], protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for each cell, a suffix that distinguishes its protocol from those of cells of its task and model.

    Args:
        cells: the cells of one sweep.
        protocols: training and evaluation protocol of each cell, by dotted name.

    Returns:
        For each cell the settings that differ and do not merely follow a swept value; a hash replaces those that do not
        fit. Empty texts if the protocols are equal.
    """
    swept = dict.fromkeys(name for cell in cells for name in cell["swept"])
    swept_texts = [[_text(_value(cell, name)) for cell in cells] for name in swept]
    groups = [(cell["labels"].get("task"), cell["labels"].get("model")) for cell in cells]
    names = []
    for name in dict.fromkeys(name for protocol in protocols for name in protocol):
        texts = [_text(protocol.get(name)) for protocol in protocols]
        differs = len(set(zip(groups, texts, strict=True))) > len(set(groups))
        if differs and name not in swept and not any(repeats(texts, others) for others in swept_texts):
            names.append(name)
    return [_suffix({name: protocol.get(name) for name in names}) for protocol in protocols]


def truncated(text: str, longest: int = LONGEST) -> str:
    """Return a name in one line; if it is too long, its beginning and a hash of the whole."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 9].rstrip()}-{key_of(text)[:8]}"


def _suffix(settings: Mapping[str, Any]) -> str:
    values = {name: _text(value) for name, value in settings.items() if value is not None}
    text, hashed = "", {}
    for name, value in values.items():
        first, last = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
        longer = f"{text} {'.'.join(dict.fromkeys((first, last)))}={value}".strip()
        # A single item of a list is not informative.
        if len(longer) <= LONG and not last.isdigit():
            text = longer
        else:
            hashed[name] = value
    return f"{text} +{key_of(hashed)[:4]}".strip() if hashed else text


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(cell: Mapping[str, Any], name: str) -> Any:
    return cell["labels"][name] if name in cell["labels"] else cell["swept"].get(name)
