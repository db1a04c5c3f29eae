"""Composes override lists to plain data, one composition per cell.

A cell of a sweep is composed exactly like a single run with the same overrides. The cells of a sweep differ mostly in
plain values (``defense.align.lamb=5``), so each distinct choice of config groups is composed only once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from harness.config.alignment_only import FINETUNE, ends_after_alignment, explaining_interpolations, idle_values
from harness.config.composed import HYDRA_RESOLVER, Composed, Files, contains, resolve
from harness.config.defense_slots import GROUP, SLOTS, resolve_choices
from harness.config.ensemble import WITHOUT, members_in
from harness.config.expansion import expand, options_of_group
from harness.config.hydra_errors import wrap_hydra_errors
from harness.config.implied_options import check_implied
from harness.config.overrides import InvalidOverride
from harness.config.shipped import CONF
from harness.config.sweep_folder import register
from harness.engine.messages import quoted
from harness.errors import ConfigError, Problem
from harness.experiment.ensemble import ENSEMBLE
from harness.experiment.serving import SERVE

register()
NAME = "config"
"""Name of the primary config."""


@dataclass(frozen=True)
class Composition:
    """One composed configuration, plain data.

    Attributes:
        data: the whole configuration without the ``hydra`` node, interpolations resolved.
        choices: the chosen option of each group.
        values: the plain values that the user set, by dotted name.
        overrides: the overrides as the user wrote them.
        invalid: overrides that could not be applied.
        idle: overrides of settings of a defense slot that is empty in this cell, or of an ensemble, a fine-tuning or a
            method at inference in a cell without one: a sweep may combine a grid over a method's settings with cells
            without it.
        members: the compositions of an ensemble's members.
    """

    data: Mapping[str, Any]
    choices: Mapping[str, str]
    values: Mapping[str, object]
    overrides: tuple[str, ...]
    invalid: tuple[InvalidOverride, ...] = ()
    idle: tuple[InvalidOverride, ...] = ()
    members: tuple["MemberComposition", ...] = ()


class MemberComposition(NamedTuple):
    """The composition of a member of an ensemble, and the number that was added to its seed."""

    composition: Composition
    offset: int


class Composer:
    """Composes many cells; each distinct choice of groups is composed once.

    Attributes:
        options: returns the options of a group.

    Args:
        loader: Hydra's config loader.
        master: the configuration that Hydra composed for the sweep itself.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        """Start with nothing composed."""
        self._loader, self._master = loader, master
        hydra = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)
        self._files = Files(loader, NAME, hydra)
        self.options = self._files.options
        self._composed: dict[tuple[str, ...], Composed] = {}
        self._groups: dict[str, bool] = {}
        self._parsed: dict[str, Override] = {}

    @wrap_hydra_errors()
    def compose(self, overrides: Sequence[str], *, member: bool = False) -> Composition:
        """Return the composition of one cell; overrides that cannot be applied are in ``invalid`` or ``idle``.

        Args:
            overrides: the overrides of the cell.
            member: whether it is a member of an ensemble, and none itself, whatever a file says.

        Raises:
            ConfigError: Hydra cannot compose it, for example because an option does not exist.
        """
        parsed = [self._parse(text) for text in overrides]
        groups, values = self._split(parsed)
        self._check_options(groups)
        structure = tuple(item.input_line or "" for item in groups)
        if structure not in self._composed:
            self._composed[structure] = self._files.compose(groups)
        composed = self._composed[structure]
        reads_hydra = composed.reads_hydra or any(contains(item.value(), HYDRA_RESOLVER) for item in values)
        known = self._hydra_config_of(overrides) if reads_hydra else nullcontext()
        with known, explaining_interpolations(composed.choices):
            data, wrong = composed.with_values(values)
        if member:
            data[ENSEMBLE] = None
        _check_slots(data)
        idle = {
            index: invalid for index, invalid in wrong.items() if invalid.unknown and _without_use(invalid.name, data)
        }
        if ends_after_alignment(composed.choices):
            data[FINETUNE] = None
            idle |= idle_values(values)
        ignored = {id(values[index]) for index in idle}
        return self._composition(
            composed.choices,
            data,
            [item for item in parsed if id(item) not in ignored],
            members=self._members(data, parsed),
            invalid=tuple(invalid for index, invalid in wrong.items() if index not in idle),
            idle=tuple(idle.values()),
        )

    def composition_of(self, config: DictConfig, choices: Mapping[str, object]) -> Composition:
        """Return the composition of a single run, which Hydra has composed.

        Args:
            config: the configuration.
            choices: the chosen option of each group.

        Raises:
            ConfigError: the chosen defense does not exist, or an interpolation cannot be resolved.
        """
        # As a container without resolving: indexing would resolve interpolations in the overrides.
        overrides = OmegaConf.to_container(self._master.hydra.overrides.task, resolve=False)
        parsed = [self._parse(text) for text in overrides]
        chosen = {group: str(choice) for group, choice in choices.items()}
        with explaining_interpolations(chosen):
            data = {str(name): resolve(config, str(name)) for name in config if name != "hydra"}
        _check_slots(data)
        idle: dict[int, InvalidOverride] = {}
        if ends_after_alignment(chosen):
            data[FINETUNE] = None
            idle = idle_values(parsed)
        return self._composition(chosen, data, parsed, members=self._members(data, parsed), idle=tuple(idle.values()))

    def _composition(
        self, choices: Mapping[str, str], data: dict[str, Any], parsed: Sequence[Override], **others: Any
    ) -> Composition:
        groups, values = self._split(parsed)
        written = {item.key_or_group for item in groups}
        emptied = {item.key_or_group for item in values}
        assigned = [item for item in values if not item.is_delete()]
        return Composition(
            data=data,
            choices=resolve_choices(
                check_implied(choices, self.options, written), self.options, data[GROUP], written, emptied
            ),
            values={
                item.key_or_group: _resolved_value(item.value(), data, item.key_or_group.split("."))
                for item in assigned
            },
            overrides=tuple(item.input_line or "" for item in parsed),
            **others,
        )

    def _members(self, data: Mapping[str, Any], parsed: Sequence[Override]) -> tuple[MemberComposition, ...]:
        """Compose the members of an ensemble: the cell's own overrides, with another defense and seed.

        Raises:
            ConfigError: a member is no option of ``defense``.
        """
        found = []
        for name, offset in members_in(data):
            moved = (GROUP, ENSEMBLE, *(("seed",) if offset else ()))
            kept = [item.input_line or "" for item in parsed if not _belongs(item.key_or_group, moved)]
            seed = [f"seed={data['seed'] + offset}"] if offset else []
            try:
                composition = self.compose([*kept, f"{GROUP}={name}", f"{ENSEMBLE}={WITHOUT}", *seed], member=True)
            except ConfigError as error:
                problems = [Problem(f"{ENSEMBLE}.members", f"`{name}`: {each}") for each in error.problems]
                raise ConfigError(problems) from None
            found.append(MemberComposition(composition, offset))
        return tuple(found)

    def _parse(self, text: str) -> Override:
        """Parse an override; cached, because the cells of a sweep share most of theirs."""
        if text not in self._parsed:
            (self._parsed[text],) = OverridesParser.create().parse_overrides([text])
        return self._parsed[text]

    def _split(self, parsed: Sequence[Override]) -> tuple[list[Override], list[Override]]:
        """Split overrides into choices of groups and values, by Hydra's rule: a mapping is always a value."""
        for item in parsed:
            if item.key_or_group not in self._groups:
                self._groups[item.key_or_group] = self._files.has_group(item.key_or_group)
        chosen = [self._groups[item.key_or_group] and not isinstance(item.value(), dict) for item in parsed]
        groups = [item for item, is_choice in zip(parsed, chosen, strict=True) if is_choice]
        return groups, [item for item, is_choice in zip(parsed, chosen, strict=True) if not is_choice]

    def _check_options(self, groups: Sequence[Override]) -> None:
        """Reject numbers and structures as options of a group, for which Hydra raises an internal error.

        Raises:
            ConfigError: with all of them.
        """
        wrong = [
            f"`{item.key_or_group}`: {'null' if item.value() is None else item.value()} is not an option; expected one "
            f"of {quoted(options_of_group(item.key_or_group, self.options))}. "
            "To set a value, use its dotted name, as in `attack.ratio=0.12`."
            for item in groups
            if not _may_be_options(item.value()) and not (item.is_delete() and item.value_type is None)
        ]
        if wrong:
            raise ConfigError(wrong)

    @contextmanager
    def _hydra_config_of(self, overrides: Sequence[str]) -> Iterator[None]:
        """Set Hydra's global config to that of a single run of the cell, for the ``hydra`` resolver."""
        config = self._loader.load_sweep_config(self._master, list(overrides))
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            yield
        finally:
            HydraConfig.instance().cfg = before


@wrap_hydra_errors()
def composition_of(config: DictConfig) -> Composition:
    """Return the composition of a single run, which Hydra has composed.

    Raises:
        ConfigError: the chosen defense does not exist, or an interpolation cannot be resolved.
    """
    hydra = HydraConfig.get()
    composer = Composer(GlobalHydra.instance().config_loader(), HydraConfig.instance().cfg)
    return composer.composition_of(config, hydra.runtime.choices)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> list[Composition]:
    """Compose the cells of a command line without Hydra's entry point.

    Args:
        overrides: as on the command line; sweeps in Hydra's grammar are expanded.
        config_dir: a folder that precedes ``conf/`` in the search path, like ``--config-dir``.

    Raises:
        ConfigError: Hydra cannot compose a cell, or cannot read an override.
    """
    return CommandLines(config_dir).compose(overrides)


class CommandLines:
    """Composes command lines; what several have in common is read and composed once.

    Args:
        config_dir: as for ``compose``.

    Raises:
        ConfigError: as ``compose``.
    """

    @wrap_hydra_errors()
    def __init__(self, config_dir: str | None = None) -> None:
        """Open the sources of the configuration."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="harness"):
            self._loader = GlobalHydra.instance().config_loader()
        if config_dir is not None:
            path = f"file://{Path(config_dir).absolute()}"
            self._loader.get_search_path().prepend(provider="command-line", path=path)
            # The loader opened its sources when it was created.
            self._loader.repository.initialize_sources(self._loader.get_search_path())
        self._composers: dict[tuple[str, ...], Composer] = {}

    @wrap_hydra_errors()
    def compose(self, overrides: Sequence[str]) -> list[Composition]:
        """Compose the cells of one command line.

        Raises:
            ConfigError: as ``compose``.
        """
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        hydra = tuple(item.input_line or "" for item in parsed if item.is_hydra_override())
        if hydra not in self._composers:
            master = self._loader.load_configuration(NAME, list(hydra), run_mode=RunMode.MULTIRUN)
            self._composers[hydra] = Composer(self._loader, master)
        composer = self._composers[hydra]
        others = [item.input_line or "" for item in parsed if not item.is_hydra_override()]
        return [composer.compose(cell) for cell in expand(others, composer.options)]


def _check_slots(data: Mapping[str, Any]) -> None:
    """Check that the defense is a mapping.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(data.get(GROUP), Mapping):
        raise ConfigError([Problem(GROUP, f"expected a group of settings with the slots {quoted(SLOTS)}.")])


def _belongs(name: str, groups: Sequence[str]) -> bool:
    """Return whether an override chooses the option of one of these groups or slots, or sets a value of an ensemble."""
    return name in groups or name.startswith((f"{ENSEMBLE}.", *(f"{GROUP}/{slot}" for slot in SLOTS)))


def _may_be_options(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _without_use(name: str, data: Mapping[str, Any]) -> bool:
    """Return whether a setting is one of an empty slot, or of an ensemble or a serve method in a cell without one."""
    group, slot, *_ = [*name.split("."), ""]
    if group in (ENSEMBLE, SERVE):
        return bool(slot) and data.get(group) is None
    return group == GROUP and slot in SLOTS and data[GROUP].get(slot) is None


def _resolved_value(value: object, data: object, path: Sequence[str]) -> object:
    """Return an override's value, with interpolations replaced by their values in the composed data."""
    if not contains(value, "${"):
        return value
    for step in path:
        data = data[int(step)] if isinstance(data, list) else data.get(step) if isinstance(data, Mapping) else None
    if isinstance(value, Mapping):
        return {key: _resolved_value(inner, data, [str(key)]) for key, inner in value.items()}
    return data
