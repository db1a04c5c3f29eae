"""Compose: from override lists to plain data, one composition a cell.

Hydra needs about a tenth of a second to compose a cell. The cells of a sweep differ mostly in plain values
(``defense.align.lamb=5``), so every distinct choice of groups is composed once and the values are laid over it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from harness.engine.wording import quoted
from harness.errors import ConfigError
from harness.expansion import expanded
from harness.overlay import assign, place_in
from harness.refusal import composing
from harness.slots import GROUP, SLOTS, settled

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The shipped configuration: beside the package in a checkout, inside it in a wheel."""
NAME = "config"
"""The file that is composed."""


@dataclass(frozen=True)
class Composition:
    """One composed configuration, plain data.

    Attributes:
        data: the whole configuration without Hydra's own part, interpolations resolved.
        choices: the chosen option of each group.
        values: the plain values that the user set, by dotted name.
        overrides: what the user wrote.
        problems: values that could not be laid over the rest.
        idle: values for a slot of the defense that is empty in this cell, by name, and why each fits nowhere. A grid
            over a method's settings may stand beside plain training, which has none.
    """

    data: Mapping[str, Any]
    choices: Mapping[str, str]
    values: Mapping[str, object]
    overrides: tuple[str, ...]
    problems: tuple[str, ...] = ()
    idle: Mapping[str, str] = field(default_factory=dict)


class _Composed(NamedTuple):
    """What Hydra made of one choice of groups, before values are laid over it."""

    raw: dict[str, Any]
    resolved: dict[str, Any]
    choices: dict[str, str]
    interpolations: tuple[str, ...]


class Composer:
    """Composes many cells, each distinct choice of groups once.

    Args:
        loader: Hydra's config loader.
        master: the configuration that Hydra composed for the sweep itself.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        """Start with nothing composed."""
        self._loader = loader
        self._master = master
        self._parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], _Composed] = {}
        self._groups: dict[str, bool] = {}
        self._parsed: dict[str, Override] = {}
        self._options = _options(loader, master.hydra)

    @composing()
    def compose(self, overrides: Sequence[str]) -> Composition:
        """Return the composition of one cell; values that fit nowhere are among its problems.

        Raises:
            ConfigError: Hydra cannot compose it, for example because an option does not exist.
        """
        parsed = [self._parse(text) for text in overrides]
        self._check_options(parsed)
        values = [item for item in parsed if self._is_value(item)]
        said = [item for item in parsed if self._is_value(item, added=True)]
        structure = tuple(item.input_line or "" for item in parsed if not self._is_value(item))
        if structure not in self._composed:
            self._composed[structure] = self._by_hydra(structure)
        composed = self._composed[structure]
        # A value that an interpolation may read has to be in place before interpolations are resolved.
        early = any(item.key_or_group in text for item in values for text in composed.interpolations)
        data = copy.deepcopy(composed.raw if early else composed.resolved)
        wrong = {
            item.key_or_group: problem
            for item in values
            if (problem := assign(data, item.key_or_group, _plain(item.value()), place_in(composed.choices)))
        }
        idle = {name: problem for name, problem in wrong.items() if _of_empty_slot(name, data)}
        return Composition(
            data=_resolved(data) if early else data,
            choices=composed.choices,
            values={item.key_or_group: _plain(item.value()) for item in said if item.key_or_group not in idle},
            overrides=tuple(item.input_line or "" for item in parsed if item.key_or_group not in idle),
            problems=tuple(problem for name, problem in wrong.items() if name not in idle),
            idle=idle,
        )

    def _parse(self, text: str) -> Override:
        """Parse an override; the cells of a sweep share most of theirs."""
        if text not in self._parsed:
            (self._parsed[text],) = self._parser.parse_overrides([text])
        return self._parsed[text]

    def _is_value(self, item: Override, *, added: bool = False) -> bool:
        """Whether an override sets a plain value of ours: no group, no deletion, none of Hydra's; an addition if asked.

        An addition (``+`` or ``++``) is Hydra's to make, but it is as much a value that the user set.
        """
        if (item.is_add() or item.is_force_add()) and not added:
            return False
        if item.is_delete() or item.package is not None:
            return False
        return not item.key_or_group.startswith("hydra.") and not self._is_group(item.key_or_group)

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return self._groups[key]

    def _check_options(self, parsed: Sequence[Override]) -> None:
        """Refuse a number or a structure where an option of a group is meant; Hydra would call it a bug.

        Raises:
            ConfigError: with all of them.
        """
        wrong = [
            f"`{item.key_or_group}`: {'null' if item.value() is None else item.value()} is not an option; expected one "
            f"of {', '.join(f'`{name}`' for name in self._loader.get_group_options(item.key_or_group))}. "
            "A value of your own is set by its dotted name, as `attack.ratio=0.12`."
            for item in parsed
            if self._is_group(item.key_or_group)
            and not _may_be_options(item.value())
            and not (item.is_delete() and item.value_type is None)
        ]
        if wrong:
            raise ConfigError(wrong)

    def _by_hydra(self, structure: tuple[str, ...]) -> _Composed:
        composed = self._loader.load_sweep_config(self._master, list(structure))
        raw = _without_hydra(composed)
        return _Composed(
            raw=raw,
            resolved=_resolved(raw),
            choices=_choices(composed.hydra, self._options, raw),
            interpolations=tuple(text for text in _texts(raw) if "${" in text),
        )


@composing()
def composition_of(config: DictConfig) -> Composition:
    """Return the composition that Hydra already made for a single run.

    Raises:
        ConfigError: the chosen defense does not exist.
    """
    hydra = HydraConfig.get()
    overrides = tuple(hydra.overrides.task)
    data = _resolved(_without_hydra(config))
    choices = _choices(hydra, _options(GlobalHydra.instance().config_loader(), hydra), data)
    return Composition(
        data=data,
        choices=choices,
        values={
            item.key_or_group: _plain(item.value())
            for item in OverridesParser.create().parse_overrides(list(overrides))
            if item.key_or_group not in hydra.runtime.choices
        },
        overrides=overrides,
    )


def compose(overrides: Sequence[str], config_dir: str | None = None) -> list[Composition]:
    """Compose the cells of a command line without Hydra's entry point.

    Args:
        overrides: as on the command line; sweeps in Hydra's grammar are expanded.
        config_dir: a folder that is searched before ours, as ``--config-dir``.

    Raises:
        ConfigError: Hydra cannot compose a cell, or cannot read an override.
    """
    return compose_each([overrides], config_dir)[0]


@composing()
def compose_each(lines: Sequence[Sequence[str]], config_dir: str | None = None) -> list[list[Composition]]:
    """Compose the cells of several command lines; a choice of groups that they share is composed once.

    Args:
        lines: the overrides of each.
        config_dir: as for ``compose``.

    Raises:
        ConfigError: as ``compose``.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="harness"):
        loader = GlobalHydra.instance().config_loader()
        if config_dir is not None:
            loader.get_search_path().prepend(provider="command-line", path=f"file://{Path(config_dir).absolute()}")
            # The sources were opened when the loader was made.
            loader.repository.initialize_sources(loader.get_search_path())
        master = loader.load_configuration(NAME, [], run_mode=RunMode.MULTIRUN)
        parser = OverridesParser.create(config_loader=loader)
        cells = [expanded(parser, overrides) for overrides in lines]
        composer = Composer(loader, master)
        return [[composer.compose(cell) for cell in line] for line in cells]


def _options(loader: Any, hydra: Any) -> Callable[[str], list[str]]:
    """Return a function that gives the options of a group, and remembers them."""

    @cache
    def options(group: str) -> list[str]:
        # With the name and the overrides, folders of `hydra.searchpath` are searched as well.
        found: list[str] = loader.get_group_options(group, config_name=NAME, overrides=list(hydra.overrides.hydra))
        return found

    return options


def _choices(hydra: Any, options: Callable[[str], list[str]], data: Mapping[str, Any]) -> dict[str, str]:
    """Return the chosen option of each group.

    Raises:
        ConfigError: the chosen defense does not exist, or `defense` is no group of slots.
    """
    if not isinstance(data.get(GROUP), Mapping):
        raise ConfigError([f"`{GROUP}`: expected a group of settings with the slots {quoted(SLOTS)}."])
    choices = {str(key): str(value) for key, value in hydra.runtime.choices.items()}
    written = {text.partition("=")[0] for text in hydra.overrides.task}
    return settled(choices, options, data[GROUP], written)


def _of_empty_slot(name: str, data: Mapping[str, Any]) -> bool:
    group, slot, *_ = [*name.split("."), ""]
    return group == GROUP and slot in SLOTS and data[GROUP].get(slot) is None


def _without_hydra(config: DictConfig) -> dict[str, Any]:
    bare = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    data = OmegaConf.to_container(bare, resolve=False)
    assert isinstance(data, dict), "a configuration is a mapping"
    return {str(key): value for key, value in data.items()}


def _resolved(data: dict[str, Any]) -> dict[str, Any]:
    resolved = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    assert isinstance(resolved, dict), "a configuration is a mapping"
    return {str(key): value for key, value in resolved.items()}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _may_be_options(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
