"""Slots: what a choice of defense puts where, and what the result is called.

``defense=NAME`` chooses the option ``NAME`` in every slot that has one, or a preset of that name, which chooses for the
slots; ``defense/SLOT=NAME`` chooses for one slot. Hydra passes over an option that a slot does not have, so that a
defense needs one file only; what is misspelt is therefore found here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from harness.engine.identity import flatten
from harness.engine.messages import close_to, quoted
from harness.errors import ConfigError, Problem

GROUP = "defense"
SLOTS = ("align", "finetune", "repair")
"""Where a defense may act, in the order of the stages."""
PLAIN = "sft"
"""The choice that leaves a slot empty, and what a cell without any defense is called."""


def group_of(slot: str) -> str:
    """Return the config group of a slot."""
    return f"{GROUP}/{slot}"


def settled(
    choices: Mapping[str, str],
    options: Callable[[str], Sequence[str]],
    chosen: Mapping[str, object],
    written: Collection[str],
    emptied: Collection[str] = (),
) -> dict[str, str]:
    """Return the choices without those of a defense's groups that stand for nothing.

    Args:
        choices: the chosen option of each group.
        options: the options of a group.
        chosen: the composed settings of the defense, by slot.
        written: the groups for which the user wrote an option.
        emptied: the dotted names that the user set or deleted: a slot that is empty through one of them may be.

    Raises:
        ConfigError: an option does not exist, or a preset empties a slot that was chosen for.
    """
    offered = {slot: list(options(group_of(slot))) for slot in SLOTS}
    # A default that was removed (`~defense/align`) has no choice.
    presets, defense = list(options(GROUP)), choices.get(GROUP, PLAIN)
    known = sorted({*presets, *(name for names in offered.values() for name in names)})
    if defense not in known:
        raise ConfigError([unknown(GROUP, defense, known)])
    problems = []
    for slot, names in offered.items():
        group, choice = group_of(slot), choices.get(group_of(slot), PLAIN)
        passed_over = choice == defense and group not in written
        if choice not in (*names, PLAIN) and not passed_over:
            problems.append(f"{unknown(group, choice, names)} `{PLAIN}` leaves the slot empty.")
        by_hand = GROUP in emptied or f"{GROUP}.{slot}" in emptied
        if choice in names and chosen.get(slot) is None and not by_hand:
            problems.append(
                f"`{group}`: `{choice}` is chosen, but `{defense}` empties the slot; expected a preset that leaves out "
                f"what it does not fill. Remove `{slot}: null` from `conf/{GROUP}/{defense}.yaml`."
            )
    if problems:
        raise ConfigError(problems)
    exist = {GROUP: presets} | {group_of(slot): names for slot, names in offered.items()}
    return {group: choice for group, choice in choices.items() if choice in exist.get(group, [choice])}


def label(choices: Mapping[str, str], defense: Mapping[str, object]) -> str:
    """Return what a defense is called in tables: what its slots hold, each once, in the order of the stages.

    Args:
        choices: the settled choices.
        defense: the settings by slot; an empty slot is null.
    """
    filled = [slot for slot in SLOTS if defense.get(slot) is not None]
    named = [choices.get(group_of(slot)) or choices.get(GROUP, PLAIN) for slot in filled]
    return "+".join(dict.fromkeys(named)) or PLAIN


def methodless(defense: object, values: Collection[str], overrides: Sequence[str]) -> list[Problem]:
    """Return which empty slots of a cell the user gave a mapping without a class: there is no method to lay it over.

    Args:
        defense: the composed settings by slot.
        values: the dotted names that the user set.
        overrides: what the user wrote to get the cell.
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
    """Return that a group has no such option, and which it has."""
    return f"`{group}`: `{choice}` is not an option{close_to(choice, known)}; expected one of {quoted(known)}."
