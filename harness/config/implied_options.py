"""Groups whose option follows from the option of another group, if they have one of its name.

They are optional in Hydra's defaults list (``optional over_refusal: ${corpus}``), so that a corpus needs no file there.
Hydra therefore ignores misspelt options, and they are detected here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from harness.config.defense_slots import unknown
from harness.errors import ConfigError

IMPLIED = {"over_refusal": "corpus", "experts": "corpus", "attack_guard": "model"}
"""The group that each follows."""


def check_implied(
    choices: Mapping[str, str], options: Callable[[str], Sequence[str]], written: Collection[str]
) -> dict[str, str]:
    """Return all choices without those that Hydra ignored.

    Args:
        choices: the chosen option of each group.
        options: the options of a group.
        written: the groups for which the user wrote an option.

    Raises:
        ConfigError: an option was chosen, by the user or in a file, that does not exist.
    """
    ignored = {group for group in IMPLIED if group in choices and choices[group] not in options(group)}
    wrong = [group for group in ignored if group in written or choices[group] != choices.get(IMPLIED[group])]
    if wrong:
        raise ConfigError([unknown(group, choices[group], options(group)) for group in sorted(wrong)])
    return {group: choice for group, choice in choices.items() if group not in ignored}
