"""Overrides of a sweep: what cannot have several values, and what some of its cells are without."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from re import split

from harness.config.compose import Composition
from harness.config.defense_slots import GROUP, SLOTS
from harness.config.overrides import InvalidOverride
from harness.engine.provenance import redacted
from harness.errors import Problem


def several_values(compositions: Sequence[Composition], settings: Collection[str]) -> Iterator[Problem]:
    """Yield a problem for each of these top-level settings that the command gives several values.

    Args:
        compositions: of the cells.
        settings: top-level settings that belong to the whole sweep.
    """
    given = [
        {
            name: value
            for name, _, value in (line.lstrip("+~").partition("=") for line in redacted(composition.overrides))
            if split(r"[./@]", name)[0] in settings
        }
        for composition in compositions
    ]
    for name in dict.fromkeys(name for own in given for name in own):
        values = dict.fromkeys(own[name] for own in given if name in own)
        if len(values) > 1:
            yield Problem(name, f"it belongs to the whole sweep; expected one value, found {', '.join(values)}")


def without_settings_of_others(
    composition: Composition, used: Collection[str], exists: Callable[[InvalidOverride, Composition], bool]
) -> Composition:
    """Return the composition without overrides of settings that its method lacks and that of another cell has.

    A sweep may combine a grid over a method's settings with cells of other methods, as with cells without a method.

    Args:
        composition: the composition of a cell.
        used: names of the overrides that could be applied in some cell.
        exists: returns whether a class has the setting of an override, though no file sets it.
    """
    others = [
        override
        for override in composition.invalid
        if override.name in used
        and override.unknown is not None
        and override.name.split(".")[:2] in [[GROUP, slot] for slot in SLOTS]
        and not exists(override, composition)
    ]
    names, lines = ({getattr(override, part) for override in others} for part in ("name", "line"))
    return replace(
        composition,
        values={name: value for name, value in composition.values.items() if name not in names},
        overrides=tuple(line for line in composition.overrides if line not in lines),
        invalid=tuple(override for override in composition.invalid if override not in others),
        idle=(*composition.idle, *others),
    )
