"""Slots of a defense: which method a choice puts into which slot, and the label of the combination.

``defense=NAME`` chooses the option ``NAME`` in every slot that has one, or a preset of that name, which sets the slots;
``defense/SLOT=NAME`` chooses for one slot. The slots are optional in Hydra's defaults list, so that a defense needs a
file only in its own slots; Hydra therefore ignores misspelt options, and they are detected here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from harness.engine.identity import flatten
from harness.engine.messages import close_to, quoted
from harness.errors import ConfigError, Problem

GROUP = "defense"
SLOTS = ("align", "finetune", "repair")
"""Slots in which a defense can act, in the order of the stages."""
PLAIN = "sft"
"""The choice that leaves a slot empty, and the label of a cell without a defense."""


def group_of(slot: str) -> str:
    """Return the config group of a slot."""
    return f"{GROUP}/{slot}"


def resolve_choices(
    choices: Mapping[str, str],
    options: Callable[[str], Sequence[str]],
    chosen: Mapping[str, object],
    written: Collection[str],
    emptied: Collection[str] = (),
) -> dict[str, str]:
    """Check the choices of the defense's groups, and return all choices without those that Hydra ignored.

    Args:
        choices: the chosen option of each group.
        options: the options of a group.
        chosen: the composed settings of the defense, by slot.
        written: the groups for which the user wrote an option.
        emptied: dotted names that the user set or deleted; a slot emptied by one of them is no error.

    Raises:
        ConfigError: an option does not exist, or a preset empties a slot for which an option was chosen.
    """
    offered = {slot: list(options(group_of(slot))) for slot in SLOTS}
    # A group that was deleted from the defaults (`~defense/align`) has no choice.
    presets, defense = list(options(GROUP)), choices.get(GROUP, PLAIN)
    known = sorted({*presets, *(name for names in offered.values() for name in names)})
    if defense not in known:
        raise ConfigError([unknown(GROUP, defense, known)])
    problems = []
    for slot, names in offered.items():
        group, choice = group_of(slot), choices.get(group_of(slot), PLAIN)
        implied = choice == defense and group not in written
        if choice not in (*names, PLAIN) and not implied:
            problems.append(f"{unknown(group, choice, names)} `{PLAIN}` leaves the slot empty.")
        by_user = GROUP in emptied or f"{GROUP}.{slot}" in emptied
        if choice in names and chosen.get(slot) is None and not by_user:
            problems.append(
                f"`{group}`: `{choice}` is chosen, but `{defense}` empties the slot; expected a preset without entries "
                f"for slots that it does not fill. Remove `{slot}: null` from `conf/{GROUP}/{defense}.yaml`."
            )
    if problems:
        raise ConfigError(problems)
    existing = {GROUP: presets} | {group_of(slot): names for slot, names in offered.items()}
    return {group: choice for group, choice in choices.items() if choice in existing.get(group, [choice])}


def label(choices: Mapping[str, str], defense: Mapping[str, object]) -> str:
    """Return the label of a defense in tables: the distinct methods in its slots, in the order of the stages.

    Args:
        choices: as returned by ``resolve_choices``.
        defense: the settings by slot; an empty slot is None.
    """
    filled = [slot for slot in SLOTS if defense.get(slot) is not None]
    named = [choices.get(group_of(slot)) or choices.get(GROUP, PLAIN) for slot in filled]
    return "+".join(dict.fromkeys(named)) or PLAIN


def slots_without_method(defense: object, values: Collection[str], overrides: Sequence[str]) -> list[Problem]:
    """Return problems of slots that have settings but no method: a mapping without a class, set on an empty slot.

    Args:
        defense: the composed settings by slot.
        values: the dotted names that the user set.
        overrides: the overrides of the cell, as the user wrote them.
    """
    problems: list[Problem] = []
    if not isinstance(defense, Mapping):
        return problems
    for slot in SLOTS:
        name, value = f"{GROUP}.{slot}", defense.get(slot)
        if name not in values or not isinstance(value, Mapping) or not value or "_target_" in value:
            continue
        dotted = " ".join(f"{path}={setting}" for path, setting in flatten(value, name, lists=False).items())
        problems.append(
            Problem(
                name,
                f"the slot is empty in the cell `{' '.join(overrides)}`, so there is no method whose settings these "
                f"could be. Choose one (`{group_of(slot)}=NAME`), or, in a sweep whose other cells have one, write "
                f"`{dotted}`: cells with an empty slot leave that out.",
            )
        )
    return problems


def unknown(group: str, choice: str, known: Sequence[str]) -> str:
    """Return the message for an option that a group does not have, with those that it has."""
    return f"`{group}`: `{choice}` is not an option{close_to(choice, known)}; expected one of {quoted(known)}."
