"""Specs: serialization of settings and stages as plain JSON data."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from harness.engine.build import OWN_PREFIXES, STAGE, TARGET, build
from harness.engine.classes import name_of
from harness.engine.stage import Stage


def describe(value: object) -> Any:
    """Return a settings object or a stage as plain JSON: names of classes under ``_target_``, parent stages by key."""
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        described = {item.name: _described(getattr(value, item.name)) for item in fields(value)}
        return {TARGET: name_of(cls), **described}
    return _described(value)


def rebuild(data: object, stage_of: Callable[[str], Stage], *, allow: tuple[str, ...] = OWN_PREFIXES) -> Stage:
    """Return the stage that ``describe`` wrote.

    Args:
        data: what ``describe`` returned.
        stage_of: returns a parent by its key.
        allow: prefixes of the classes that ``_target_`` may name.

    Raises:
        ConfigError: the data do not describe a stage that the installed code supports.
    """
    return build(Stage, data, allow=allow, stage_of=stage_of)  # type: ignore[type-abstract]


def stages_in(data: object) -> Iterator[str]:
    """Yield the keys of the stages to which plain data refer: a spec's parents."""
    if isinstance(data, Mapping) and STAGE in data:
        yield str(data[STAGE])
    elif isinstance(data, Mapping | list):
        for part in data.values() if isinstance(data, Mapping) else data:
            yield from stages_in(part)


def _described(value: object) -> Any:
    if isinstance(value, Stage):
        return {STAGE: value.key}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_described(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _described(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    raise TypeError(f"{value!r} is of type {type(value).__qualname__}, which cannot be written as plain data")
