"""Wording of values, types and names in error messages."""

import difflib
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, get_args, get_origin

SCALARS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_KINDS = {str: "a text", bool: "a truth value", int: "a whole number", float: "a number", NoneType: "empty"}


def kind(data: object) -> str:
    """Describe the type of a value."""
    if isinstance(data, Mapping):
        return "a group of settings"
    return "a list" if isinstance(data, list | tuple) else _KINDS.get(type(data), f"a {type(data).__name__}")


def expected(hint: Any) -> str:
    """Describe the values that a type annotation accepts."""
    if hint in SCALARS:
        return SCALARS[hint]
    if get_origin(hint) is tuple:
        return "a list"
    if arms := get_args(hint):
        return " or ".join(expected(arm) for arm in arms)
    return "null" if hint is NoneType else f"`{getattr(hint, '__name__', hint)}`"


def quoted(names: Iterable[object]) -> str:
    """Format names as a list in backticks."""
    return ", ".join(f"`{name}`" for name in names)


def close_to(name: str, known: Iterable[str]) -> str:
    """Suggest the closest known name to a misspelt one; empty if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean `{matches[0]}`?)" if matches else ""
