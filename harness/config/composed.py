"""Composed: what Hydra makes of one choice of groups, and the values of many cells laid over it in turn.

Composing takes Hydra a tenth of a second, most of it for reading files and for its own settings. Here every file is
read once and Hydra's own settings are left out. Values are laid over by Hydra's own code, in the order in which they
were written, and whatever could depend on them is resolved afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import GroupDefault, InputDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from harness.config.hydra_errors import Refusal, composing
from harness.config.overrides import Misfit, unknown_setting
from harness.errors import Problem

ASKS_HYDRA = "${hydra:"
"""How a setting is computed from what Hydra knows of the run, such as the choices."""


class Files:
    """The files of a configuration, each read once, and what Hydra composes of them.

    Args:
        loader: Hydra's config loader.
        name: the file that is composed.
        hydra: the overrides of Hydra's own settings.
    """

    def __init__(self, loader: Any, name: str, hydra: Sequence[str]) -> None:
        """Open the folders."""
        self._loader, self._name = loader, name
        _, read = loader._parse_overrides_and_create_caching_repo(name, list(hydra))
        self._repository = _Ours(read)
        self._parts: dict[tuple[str, str], DictConfig] = {}

    def has_group(self, name: str) -> bool:
        """Whether a name is that of a config group."""
        return bool(self._repository.group_exists(name))

    @composing()
    def compose(self, groups: Sequence[Override]) -> "Composed":
        """Compose a choice of groups.

        Raises:
            ConfigError: Hydra cannot, for example because an option does not exist.
        """
        config = _Watched()
        defaults = create_defaults_list(
            repo=self._repository,
            config_name=self._name,
            overrides_list=list(groups),
            prepend_hydra=False,
            skip_missing=False,
        )
        for default in defaults.defaults:
            config.merge_with(self._part(default))
        config.pop("hydra", None)
        OmegaConf.set_struct(config, True)
        return Composed(config, {str(key): str(value) for key, value in defaults.overrides.known_choices.items()})

    def _part(self, default: ResultDefault) -> DictConfig:
        """Return what one file says, at its place in the configuration."""
        key = default.config_path, default.package
        if key not in self._parts:
            self._parts[key] = self._loader._load_single_config(default, self._repository).config
        return self._parts[key]


class _Ours:
    """What was read, each file once, without its choices of Hydra's own groups."""

    def __init__(self, read: Any) -> None:
        self._read = read
        self._loaded: dict[str, ConfigResult | None] = {}
        self.group_exists = read.group_exists
        self.config_exists = read.config_exists
        self.get_group_options = read.get_group_options
        self.get_schema_source = read.get_schema_source
        self.get_sources = read.get_sources

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._loaded:
            if (found := self._read.load_config(config_path)) is not None:
                found = copy(found)
                found.defaults_list = [item for item in found.defaults_list or [] if not _of_hydra(item)]
            self._loaded[config_path] = found
        return self._loaded[config_path]


def _of_hydra(default: InputDefault) -> bool:
    return isinstance(default, GroupDefault) and str(default.group).lstrip("/").startswith("hydra/")


class _Watched(DictConfig):  # type: ignore[misc]
    """A configuration that remembers which of its top-level settings were read: interpolations start from here."""

    def __init__(self) -> None:
        super().__init__({})
        self.__dict__["_read"] = set()

    def _get_node(self, key: Any, *how: Any, **how_named: Any) -> Any:
        self.__dict__["_read"].add(str(key))
        return super()._get_node(key, *how, **how_named)

    def read_since(self) -> frozenset[str]:
        """Return what was read since the last time that somebody asked."""
        read = frozenset(self.__dict__["_read"])
        self.__dict__["_read"].clear()
        return read


class Composed:
    """A configuration of one choice of groups.

    Args:
        config: without Hydra's own part; nothing is resolved.
        choices: the chosen option of each group.
    """

    def __init__(self, config: _Watched, choices: Mapping[str, str]) -> None:
        """Start with nothing resolved."""
        self._config, self.choices = config, choices
        self.asks_hydra = mentions(OmegaConf.to_container(config, resolve=False), ASKS_HYDRA)
        self._known: dict[str, tuple[frozenset[str], Any]] = {}

    def laid_over(self, values: Sequence[Override]) -> tuple[dict[str, Any], dict[int, Misfit]]:
        """Return the configuration with values laid over it, resolved, and the values that fit nowhere, by position.

        Args:
            values: as they were written.

        Raises:
            ConfigError: an interpolation cannot be resolved.
        """
        wrong: dict[int, Misfit] = {}
        touched = {item.key_or_group.partition(".")[0] for item in values}
        while True:
            # A value that does not fit may leave its traces, so all begins anew without it.
            with self._kept(touched):
                before = len(wrong)
                for index, item in enumerate(values):
                    if index not in wrong and (problem := self._laid(item)):
                        wrong[index] = problem
                        break
                if len(wrong) == before:
                    return self._resolved(touched), wrong

    def _laid(self, item: Override) -> Misfit | None:
        """Lay one value over; return what is wrong with it."""
        name, line = item.key_or_group, item.input_line or ""
        plainly = not (item.is_add() or item.is_force_add() or item.is_delete())
        if plainly and (misfit := unknown_setting(self._config, name, line)):
            return misfit
        try:
            with composing():
                ConfigLoaderImpl._apply_overrides_to_config([item], self._config)
        except Refusal as refusal:
            return Misfit(name, line, Problem("", f"`{line}`: {refusal.problems[0]}"))
        return None

    @contextmanager
    def _kept(self, touched: set[str]) -> Iterator[None]:
        """Put the top-level settings that values touch back afterwards."""
        kept = {name: deepcopy(node) for name, node in self._config.items_ex(resolve=False) if name in touched}
        try:
            yield
        finally:
            with open_dict(self._config), flag_override(self._config, "no_deepcopy_set_nodes", True):
                for name in touched & self._config.keys():
                    del self._config[name]
                for name, node in kept.items():
                    self._config[name] = node

    def _resolved(self, touched: set[str]) -> dict[str, Any]:
        """Resolve each top-level setting; one that has read nothing that a value touches is the same in every cell."""
        data: dict[str, Any] = {}
        for name in map(str, self._config):
            read, value = self._known.get(name, (frozenset(), None))
            if not read or read & touched:
                self._config.read_since()
                value = resolved(self._config, name)
                read = self._config.read_since()
                if not self.asks_hydra and not read & touched:
                    self._known[name] = read, value
            data[name] = value
        return data


@composing()
def resolved(config: DictConfig, name: str) -> Any:
    """Return a top-level setting as plain data with interpolations resolved.

    Raises:
        ConfigError: an interpolation cannot be resolved.
    """
    value = "???" if OmegaConf.is_missing(config, name) else config[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def mentions(config: object, words: str) -> bool:
    """Whether a text of unresolved plain data holds some words."""
    if isinstance(config, Mapping):
        return any(mentions(inner, words) for inner in config.values())
    if isinstance(config, list):
        return any(mentions(inner, words) for inner in config)
    return isinstance(config, str) and words in config
