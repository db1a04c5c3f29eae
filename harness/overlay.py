"""Overlay: plain values by dotted name, laid over a composed configuration, and where each is set."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.engine.wording import quoted
from harness.training.budget import Budget

MOVED = {f"budget.{name}": advice for name, advice in Budget.moved.items()}
"""What to say of a setting that is elsewhere now, by the end of its dotted name."""


def place_in(choices: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from a dotted path to the file in which it is set."""

    def place(path: str) -> str:
        names = [name.partition("[")[0] for name in path.split(".")]
        nested, group = "/".join(names[:2]), names[0]
        chosen = next((name for name in (nested, group) if name in choices), None)
        return f"conf/{chosen}/{choices[chosen]}.yaml" if chosen else "conf/config.yaml"

    return place


def assign(data: dict[str, Any], name: str, value: object, place: Callable[[str], str]) -> str | None:
    """Lay one value over plain data; return the problem if the name does not exist.

    Args:
        data: the configuration, changed in place.
        name: the dotted name.
        value: plain data.
        place: says in which file the setting at a dotted path is set.
    """
    path = name.split(".")
    node: Any = data
    for depth, step in enumerate(path, start=1):
        if not isinstance(node, dict) or step not in node:
            return _unknown(path[:depth], node, place)
        if depth < len(path):
            node = node[step]
    node[path[-1]] = value
    return None


def _unknown(path: Sequence[str], node: object, place: Callable[[str], str]) -> str:
    *parents, name = path
    if advice := MOVED.get(".".join(path[-2:])):
        return f"`{'.'.join(path)}`: {advice}"
    known = [str(key) for key in node if key != "_target_"] if isinstance(node, dict) else []
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean `{close[0]}`?)" if close else ""
    owner = f" of `{'.'.join(parents)}`" if parents else ""
    listed = quoted(known) or "none"
    return f"`{'.'.join(path)}`: unknown setting{owner}{guess}. Known: {listed}. Set in `{place('.'.join(path))}`."
