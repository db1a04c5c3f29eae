"""Overlay: values laid over a composed configuration by dotted name, where each is set, and which fit nowhere."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from harness.engine.messages import quoted
from harness.errors import Problem
from harness.training.budget import Budget

MOVED = {f"budget.{name}": advice for name, advice in Budget.moved.items()}
"""What to say of a setting that is elsewhere now, by the end of its dotted name."""


class Misfit(NamedTuple):
    """A value that could not be laid over the rest.

    Attributes:
        name: its dotted name.
        line: as it was written.
        problem: what is wrong with it.
        unknown: how far its name leads nowhere: no file sets it, though the class that reads it may have it.
    """

    name: str
    line: str
    problem: Problem
    unknown: str | None = None


def place_in(choices: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from a dotted path to the file in which it is set."""

    def place(path: str) -> str:
        names = [name.partition("[")[0] for name in path.split(".")]
        nested, group = "/".join(names[:2]), names[0]
        chosen = next((name for name in (nested, group) if name in choices), None)
        return f"conf/{chosen}/{choices[chosen]}.yaml" if chosen else "conf/config.yaml"

    return place


def unknown_setting(config: DictConfig, name: str, line: str) -> Misfit | None:
    """Return that a configuration has nothing of a dotted name, and what it has there; None if it has."""
    path = name.split(".")
    node: object = config
    for depth, step in enumerate(path, start=1):
        if isinstance(node, ListConfig) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif step in (known := _names(node)):
            node = OmegaConf.select(node, step) if depth < len(path) else None
        else:
            if advice := MOVED.get(".".join(path[-2:])):
                return Misfit(name, line, Problem(name, advice))
            return Misfit(name, line, _told(path[:depth], known), unknown=".".join(path[:depth]))
    return None


def _names(node: object) -> list[str]:
    if isinstance(node, DictConfig):
        return [str(key) for key in node]
    return [str(index) for index in range(len(node))] if isinstance(node, ListConfig) else []


def _told(path: Sequence[str], names: Sequence[str]) -> Problem:
    *parents, name = path
    known = [key for key in names if key != "_target_"]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean `{close[0]}`?)" if close else ""
    owner = f" of `{'.'.join(parents)}`" if parents else ""
    listed = quoted(known) or "none"
    return Problem(".".join(path), f"unknown setting{owner}{guess}. Known: {listed}.")
