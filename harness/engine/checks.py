"""Range checks of settings, with uniform messages.

Each function checks the named fields of a settings object and returns a ``Problem`` per value out of range, for the
object's ``problems()``. None is skipped, as it means "all" or "without". NaN is out of every range.
"""

from collections.abc import Callable

from harness.errors import Problem


def counts(settings: object, *names: str) -> list[Problem]:
    """Check for integers >= 1."""
    return _out_of_range(settings, names, lambda value: value >= 1, "is too small; expected a whole number >= 1")


def positive(settings: object, *names: str) -> list[Problem]:
    """Check for numbers > 0."""
    return _out_of_range(settings, names, lambda value: value > 0, "is not positive; expected a number > 0")


def not_negative(settings: object, *names: str) -> list[Problem]:
    """Check for numbers >= 0."""
    return _out_of_range(settings, names, lambda value: value >= 0, "is negative; expected a number >= 0")


def shares(settings: object, *names: str) -> list[Problem]:
    """Check for numbers from 0 to 1."""
    return _out_of_range(settings, names, lambda value: 0 <= value <= 1, "is outside 0..1; expected a share, as 0.1")


def below_one(settings: object, *names: str) -> list[Problem]:
    """Check for numbers >= 0 and < 1."""
    return _out_of_range(
        settings, names, lambda value: 0 <= value < 1, "is out of range; expected a number >= 0 and < 1"
    )


def layer_numbers(settings: object, name: str) -> list[Problem]:
    """Check for a list of numbers of layers, which count from 1."""
    numbers = getattr(settings, name)
    if numbers is None or (numbers and min(numbers) >= 1):
        return []
    return [Problem(name, f"{list(numbers)}; expected numbers of layers from 1, for example [10]")]


def _out_of_range(settings: object, names: tuple[str, ...], valid: Callable[[float], bool], text: str) -> list[Problem]:
    values = {name: getattr(settings, name) for name in names}
    return [
        Problem(name, f"{value} {text}") for name, value in values.items() if value is not None and not valid(value)
    ]
