"""The ranges of settings, told in one wording.

Each function looks at fields of a settings object and returns a problem for each value that is out of range, as the
object's ``problems()`` returns them. A field that holds None is left out: it stands for "all" or "without". NaN is in
no range.
"""

from collections.abc import Callable

from harness.errors import Problem


def counts(settings: object, *names: str) -> list[Problem]:
    """Whole numbers from 1 on."""
    return _outside(settings, names, lambda value: value >= 1, "is too small; expected a whole number >= 1")


def positive(settings: object, *names: str) -> list[Problem]:
    """Numbers above 0."""
    return _outside(settings, names, lambda value: value > 0, "is not positive; expected a number > 0")


def not_negative(settings: object, *names: str) -> list[Problem]:
    """Numbers from 0 on."""
    return _outside(settings, names, lambda value: value >= 0, "is negative; expected a number >= 0")


def shares(settings: object, *names: str) -> list[Problem]:
    """Numbers from 0 to 1."""
    return _outside(settings, names, lambda value: 0 <= value <= 1, "is outside 0..1; expected a share, as 0.1")


def below_one(settings: object, *names: str) -> list[Problem]:
    """Numbers from 0 up to, not including, 1."""
    return _outside(settings, names, lambda value: 0 <= value < 1, "is out of range; expected a number >= 0 and < 1")


def _outside(settings: object, names: tuple[str, ...], right: Callable[[float], bool], words: str) -> list[Problem]:
    values = {name: getattr(settings, name) for name in names}
    return [
        Problem(name, f"{value} {words}") for name, value in values.items() if value is not None and not right(value)
    ]
