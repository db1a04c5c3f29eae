"""Overrides by dotted name: those that cannot be applied, and the file in which a setting is set."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from harness.config.shipped import CONF
from harness.engine.messages import quoted
from harness.errors import Problem
from harness.training.budget import Budget

MOVED = {f"budget.{name}": advice for name, advice in Budget.moved.items()}
"""Advice for settings that have moved, by the last two parts of their old dotted name."""

PACKAGED = {"attack.ratio": "attack_ratio"}
"""Groups whose options set a value of another group, by its dotted name."""


class InvalidOverride(NamedTuple):
    """An override of a value that could not be applied.

    Attributes:
        name: dotted name of the setting.
        line: the override as it was written.
        problem: what is wrong with it.
        unknown: the shortest prefix of the name that no file sets; a class may still define it. None if the name is set
            or has moved.
    """

    name: str
    line: str
    problem: Problem
    unknown: str | None = None


def file_locator(choices: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function from a dotted path to the file in which it is set."""

    def locate(path: str) -> str:
        names = [name.partition("[")[0] for name in path.split(".")]
        nested, group = "/".join(names[:2]), names[0]
        packaged = PACKAGED.get(path)
        chosen = next((name for name in (packaged, nested, group) if name in choices), None)
        if chosen is None:
            return "conf/config.yaml"
        file = f"{chosen}/{choices[chosen]}.yaml"
        return f"conf/{file}" if (CONF / file).is_file() else f"{file}` in `--config-dir"

    return locate


def unknown_setting(config: DictConfig, name: str, line: str) -> InvalidOverride | None:
    """Return an override as invalid if the configuration does not have its dotted name; None if it does."""
    path = name.split(".")
    node: object = config
    for depth, step in enumerate(path, start=1):
        if isinstance(node, ListConfig) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif step in (known := _names(node)):
            node = OmegaConf.select(node, step) if depth < len(path) else None
        else:
            if advice := MOVED.get(".".join(path[-2:])):
                return InvalidOverride(name, line, Problem(name, advice))
            return InvalidOverride(name, line, _problem(path[:depth], known), unknown=".".join(path[:depth]))
    return None


def _names(node: object) -> list[str]:
    if isinstance(node, DictConfig):
        return [str(key) for key in node]
    return [str(index) for index in range(len(node))] if isinstance(node, ListConfig) else []


def _problem(path: Sequence[str], names: Sequence[str]) -> Problem:
    *parents, name = path
    known = [key for key in names if key != "_target_"]
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean `{close[0]}`?)" if close else ""
    owner = f" of `{'.'.join(parents)}`" if parents else ""
    listed = quoted(known) or "none"
    return Problem(".".join(path), f"unknown setting{owner}{guess}. Known: {listed}.")
