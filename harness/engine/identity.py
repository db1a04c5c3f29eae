"""Identity: the canonical payload of a stage and its hash, the key.

The payload of a value is canonical JSON: a dataclass becomes its ``name``, its ``version`` and every field cast to the
field's annotated type; a parent stage becomes its key; a field that is ``None`` is omitted, so that adding an optional
field keeps old keys valid. A value without a stable representation raises: a fallback to ``str()`` could give different
keys in different processes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

KEY_LENGTH = 16
"""Hexadecimal digits of a key: 64 bits, so a store of a million artifacts collides with probability 3e-8."""


@runtime_checkable
class Keyed(Protocol):
    """A value that is represented by its key in another's payload: a parent stage, or a folder by its content."""

    @property
    def key(self) -> str:
        """Hash of everything that can change the value's result."""
        ...


def key_of(payload: object) -> str:
    """Return the key of a canonical payload: the first 16 hex digits of the sha256 of its sorted, compact JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def payload_of(value: object) -> dict[str, Any]:
    """Return the canonical payload of a dataclass instance that carries ``name`` and ``version``.

    Raises:
        TypeError: the value, or something inside it, has no stable representation.
    """
    if isinstance(value, type) or not is_dataclass(value):
        raise TypeError(f"{value!r} has no identity: expected a dataclass instance")
    cls: type = type(value)
    name, version = getattr(cls, "name", None), getattr(cls, "version", None)
    if not isinstance(name, str) or not isinstance(version, int):
        raise TypeError(f"{cls.__qualname__} has no identity: it needs the class attributes `name` and `version`")
    hints = field_types(cls)
    members = {
        field.name: _canonical(getattr(value, field.name), hints[field.name], f"{cls.__qualname__}.{field.name}")
        for field in fields(value)
        if getattr(value, field.name) is not None
    }
    return {"name": name, "version": version, "fields": members}


def _canonical(value: object, hint: object, where: str) -> object:
    if isinstance(value, Enum):
        return _canonical(value.value, object, where)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return _number(value, hint, where)
    if isinstance(value, tuple):
        inner = _item_types(hint, len(value))
        return [_canonical(item, inner[i], f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Keyed):
        return {"key": value.key}
    if is_dataclass(value) and not isinstance(value, type):
        return payload_of(value)
    raise TypeError(f"{where} is of type {type(value).__qualname__}, which has no stable representation")


def _number(value: int | float, hint: object, where: str) -> int | float:
    if not math.isfinite(value):
        raise TypeError(f"{where} is {value}: only finite numbers have an identity")
    if isinstance(value, int):
        return float(value) if _wants(hint, float) else value
    # The sum turns -0.0 into 0.0.
    return int(value) if _wants(hint, int) and value.is_integer() else value + 0.0


def _wants(hint: object, number: type) -> bool:
    """Return whether an annotation, possibly optional, asks for this number type and not for the other."""
    arms = get_args(hint) or (hint,)
    return number in arms and not ({int, float} - {number}).intersection(arms)


def _item_types(hint: object, length: int) -> tuple[object, ...]:
    for arm in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(arm) is tuple:
            inner = get_args(arm)
            inner = inner[:1] * length if inner[-1:] == (Ellipsis,) else inner
            return inner if len(inner) == length else (object,) * length
    return (object,) * length


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the annotated types of a class's fields, by name. Cached: called thousands of times per plan."""
    return get_type_hints(cls)


def flatten(value: object, path: str = "", *, lists: bool = True) -> dict[str, Any]:
    """Flatten nested mappings and lists into one mapping from dotted path to scalar.

    Args:
        value: the nested value.
        path: prefix of all paths.
        lists: whether lists are flattened by index; otherwise a list is a scalar.
    """
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif lists and isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{path}.{key}" if path else key, lists=lists)
    return flat
