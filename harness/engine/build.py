"""Settings built from plain data.

All data are checked before use, and all problems are reported together, each with its dotted path.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, is_typeddict

from harness.engine.classes import is_name, paths_of, versions_of
from harness.engine.identity import field_types
from harness.engine.messages import SCALARS, close_to, expected, kind, quoted
from harness.engine.stage import Stage
from harness.errors import ConfigError, HarnessError, Problem

T = TypeVar("T")
TARGET = "_target_"
STAGE = "_stage_"
OWN_PREFIXES = ("harness.",)


def allowed(targets: Iterable[str]) -> tuple[str, ...]:
    """Return the import prefixes that data may name: this package's, and those that the user allows in ``targets``."""
    return (*OWN_PREFIXES, *targets)


def build(
    cls: type[T],
    data: object,
    *,
    path: str = "",
    allow: tuple[str, ...] = OWN_PREFIXES,
    where: Callable[[str], str] | None = None,
    stage_of: Callable[[str], Stage] | None = None,
) -> T:
    """Build a typed settings object from plain data.

    Args:
        cls: a dataclass, or a protocol if the data name the class under ``_target_``.
        data: a mapping of settings, nested like the dataclasses.
        path: dotted path of the data in the whole configuration, for messages.
        allow: prefixes of the classes that ``_target_`` may name.
        where: returns the file in which the setting at a dotted path is set; empty if unknown.
        stage_of: returns a stage by its key, for data that refer to one under ``_stage_``.

    Raises:
        ConfigError: one or more settings are unknown, missing, of the wrong type or out of range.
    """
    builder = _Builder(allow=allow, where=where, stage_of=stage_of)
    value = builder.value(cls, data, path)
    if builder.problems:
        raise ConfigError(builder.problems)
    return value  # type: ignore[no-any-return]


class _InvalidError(Exception):
    """A value cannot be built; its problems have been recorded."""


class _NoMatchError(_InvalidError):
    """The data name no class that matches the type; within a union, another member may match."""


@dataclass
class _Builder:
    allow: tuple[str, ...]
    where: Callable[[str], str] | None = None
    stage_of: Callable[[str], Stage] | None = None
    problems: list[Problem] = field(default_factory=list)

    def value(self, hint: Any, data: object, path: str) -> Any:
        """Return the value, or None after recording its problems."""
        try:
            return self._build(hint, data, path)
        except _InvalidError:
            return None

    def _fail(self, path: str, text: str) -> NoReturn:
        self._add(Problem(path, text))
        raise _InvalidError

    def _add(self, problem: Problem) -> None:
        if problem.placed:
            # One file is met by several settings.
            self.problems += [problem] if problem not in self.problems else []
            return
        hint = self.where(problem.path) if self.where is not None else ""
        text = f"{problem.text.rstrip('.')}. Set in `{hint}`." if hint else problem.text
        self.problems.append(replace(problem, text=text))

    def _build(self, hint: Any, data: object, path: str) -> Any:
        if hint is Any or hint is object:
            return self._object(object, data, path) if isinstance(data, Mapping) else data
        if (builder := _BUILDERS.get(get_origin(hint) or hint)) is not None:
            return builder(self, get_args(hint), data, path)
        return self._simple(hint, data, path)

    def _simple(self, hint: Any, data: object, path: str) -> Any:
        if not isinstance(hint, type) or is_typeddict(hint):
            self._fail(
                path,
                f"the class has a field of type `{hint}`, which no setting can have; expected numbers, texts, enums, "
                "dataclasses, and tuples or mappings of them, as in `tuple[float, ...]`.",
            )
        if hint in SCALARS:
            return self._scalar(hint, data, path)
        if issubclass(hint, Enum):
            return hint(self._one_of(tuple(member.value for member in hint), data, path))
        return self._object(hint, data, path)

    def _scalar(self, hint: type, data: object, path: str) -> object:
        if isinstance(data, Enum):
            data = data.value
        if isinstance(data, float) and not math.isfinite(data):
            self._fail(path, f"{data!r} is not finite; expected {SCALARS[hint]}.")
        if type(data) is hint:
            return data
        if hint is float and type(data) is int:
            return float(data)
        if hint is int and isinstance(data, float) and data.is_integer():
            return int(data)
        self._fail(path, f"{data!r} is {kind(data)}; expected {SCALARS[hint]}.")

    def _one_of(self, known: tuple[Any, ...], data: object, path: str) -> object:
        if isinstance(data, Enum):
            data = data.value
        for value in known:
            if type(value) is type(data) and value == data:
                return value
        close = close_to(str(data), [str(value) for value in known])
        self._fail(path, f"{data!r} is not known{close}. Expected one of {quoted(map(str, known))}.")

    def _tuple(self, inner: tuple[Any, ...], data: object, path: str) -> tuple[object, ...]:
        if not isinstance(data, list | tuple):
            self._fail(path, f"{data!r} is {kind(data)}; expected a list.")
        if len(inner) == 2 and inner[1] is Ellipsis:
            hints: tuple[Any, ...] = inner[:1] * len(data)
        else:
            hints = inner or (object,) * len(data)
        if len(hints) != len(data):
            self._fail(path, f"{list(data)!r} has {len(data)} values; expected {len(hints)}.")
        before = len(self.problems)
        pairs = enumerate(zip(hints, data, strict=True))
        values = tuple(self.value(hint, item, f"{path}[{i}]") for i, (hint, item) in pairs)
        if len(self.problems) > before:
            raise _InvalidError
        return values

    def _mapping(self, inner: tuple[Any, ...], data: object, path: str) -> dict[str, object]:
        if not isinstance(data, Mapping):
            self._fail(path, f"{data!r} is {kind(data)}; expected a mapping.")
        before = len(self.problems)
        # Earlier versions stored some mappings as a class, with a `_target_`.
        values = {str(n): self.value(inner[1], item, f"{path}.{n}") for n, item in data.items() if n != TARGET}
        if len(self.problems) > before:
            raise _InvalidError
        return values

    def _union(self, hints: tuple[Any, ...], data: object, path: str) -> object:
        if data is None and NoneType in hints:
            return None
        rest = [hint for hint in hints if hint is not NoneType]
        before = len(self.problems)
        failures: list[list[Problem]] = []
        relevant: list[list[Problem]] = []
        for hint in rest:
            try:
                return self._build(hint, data, path)
            except _InvalidError as error:
                failures.append(self.problems[before:])
                if not isinstance(error, _NoMatchError):
                    relevant.append(failures[-1])
                del self.problems[before:]
        if len(rest) == 1 or isinstance(data, Mapping):
            self.problems.extend((relevant or failures)[0])
            raise _InvalidError
        self._fail(path, f"{data!r} is {kind(data)}; expected {' or '.join(map(expected, rest))}.")

    def _object(self, hint: type, data: object, path: str) -> object:
        if self.stage_of is not None and isinstance(data, Mapping) and STAGE in data:
            data = self.stage_of(str(data[STAGE]))
        if is_dataclass(data) and not isinstance(data, type):
            if mismatch := _mismatch(type(data), hint):
                self._fail(path, f"`{type(data).__qualname__}` is not a `{hint.__name__}`: {mismatch}.")
            return data
        if isinstance(data, str) and callable(parse := getattr(hint, "parse", None)):
            try:
                return parse(data)
            except HarnessError as error:
                for problem in error.problems if isinstance(error, ConfigError) else (Problem.of(str(error)),):
                    self._add(problem if problem.placed else Problem(path, str(problem)))
                raise _InvalidError from None
        if not isinstance(data, Mapping):
            self._fail(path, f"{data!r} is {kind(data)}; expected {expected(hint)}.")
        try:
            cls = self._class(hint, data, path)
        except _InvalidError:
            raise _NoMatchError from None
        return self._fields(cls, {key: item for key, item in data.items() if key != TARGET}, path)

    def _class(self, hint: type, data: Mapping[str, Any], path: str) -> type:
        if TARGET not in data:
            if is_dataclass(hint) and hint is not Stage:
                return hint
            self._fail(path, f"no class is named; expected `{TARGET}` with a {expected(hint)}.")
        target = data[TARGET]
        location = f"{path}.{TARGET}" if path else TARGET
        if not isinstance(target, str) or not (is_name(target) or target.startswith(self.allow)):
            others = "`targets=[my_package.]` allows others (`--target` of `harness stage`)"
            self._fail(location, f"{target!r} is not allowed; expected a class under {quoted(self.allow)}; {others}.")
        found = [self._class_at(path, location) for path in paths_of(target)]
        if not found:
            others = " or ".join(map(str, versions_of(target)))
            known = f"the installed code has version {others} of it" if others else "the installed code has none"
            self._fail(location, f"`{target}` is not known: {known}. Run the version of the code that wrote it.")
        matching = [cls for cls in found if not _mismatch(cls, hint)]
        if len(matching) != 1:
            mismatch = (
                _mismatch(found[0], hint) or f"it is ambiguous between {quoted(each.__qualname__ for each in matching)}"
            )
            self._fail(location, f"`{target}` is not a `{hint.__name__}`: {mismatch}.")
        return matching[0]

    def _class_at(self, target: str, location: str) -> type:
        try:
            return _import_class(target)
        except (ImportError, AttributeError) as error:
            advice = "" if target.startswith("harness.") else " Install its package, or put its folder on PYTHONPATH."
            self._fail(location, f"`{target}` cannot be imported: {error}.{advice}")
        except SyntaxError as error:
            self._fail(location, f"`{target}` cannot be imported: {error.filename}, line {error.lineno}: {error.msg}.")

    def _fields(self, cls: type, data: Mapping[str, Any], path: str) -> object:
        before = len(self.problems)
        label = name if isinstance(name := getattr(cls, "name", None), str) else cls.__name__
        known, types = _fields_of(cls), field_types(cls)
        moved: Mapping[str, str] = getattr(cls, "moved", {})
        for key, item in data.items():
            if key in moved:
                # A stored stage may have it as null, which is not part of the key, so it can be dropped.
                if item is not None or self.stage_of is None:
                    self._add(Problem(key, moved[key]).under(path))
            elif key not in known:
                close = close_to(str(key), known)
                listed = f"Known: {quoted(known)}." if known else "It has no settings."
                self._add(Problem(str(key), f"unknown setting for `{label}`{close}. {listed}").under(path))
        values: dict[str, Any] = {}
        missing = False
        for key, item in known.items():
            if key not in data:
                if item.default is MISSING and item.default_factory is MISSING:
                    missing = True
                    text = f"missing setting for `{label}`; expected {expected(types[key])}."
                    self._add(Problem(key, text).under(path))
                continue
            try:
                values[key] = self._build(types[key], data[key], f"{path}.{key}" if path else key)
            except _InvalidError:
                missing = missing or (item.default is MISSING and item.default_factory is MISSING)
        if missing:
            raise _InvalidError
        # Built despite problems, with defaults for invalid values, so that range errors are reported too.
        value: object = cls(**values)
        if callable(problems := getattr(value, "problems", None)):
            for stated in problems():
                self._add(Problem.of(stated).under(path))
        if len(self.problems) > before:
            raise _InvalidError
        return value


_BUILDERS: dict[Any, Callable[[_Builder, tuple[Any, ...], object, str], object]] = {
    Union: _Builder._union,
    UnionType: _Builder._union,
    tuple: _Builder._tuple,
    Mapping: _Builder._mapping,
    Literal: _Builder._one_of,
}


@cache
def _fields_of(cls: type) -> dict[str, Field[Any]]:
    return {item.name: item for item in fields(cls) if item.init}


@cache
def _import_class(target: str) -> type:
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name)
    if not isinstance(found, type):
        raise AttributeError(f"`{name}` is not a class")
    return found


@cache
def _mismatch(cls: type, hint: type) -> str:
    """Return why a class does not match a type; empty if it does."""
    if not is_dataclass(cls):
        return "it is not a settings class (a dataclass)"
    params: Any = getattr(cls, "__dataclass_params__", None)
    if not params.frozen:
        return "it can be changed, and would no longer be what its key says; expected `@dataclass(frozen=True)`"
    if not getattr(hint, "_is_protocol", False):
        return "" if issubclass(cls, hint) else f"it is no subclass of `{hint.__qualname__}`"
    wanted = {name for base in hint.__mro__ if getattr(base, "_is_protocol", False) for name in vars(base)}
    had = {item.name for item in fields(cls)}
    missing = sorted(name for name in wanted if not name.startswith("_") and name not in had and not hasattr(cls, name))
    return f"it lacks {quoted(missing)}" if missing else ""
