"""The configuration of one choice of groups, to which the value overrides of many cells are applied in turn.

Hydra takes about 0.1 s per composition, most of it for reading files and for the ``hydra`` node. Here every file is
read once and the ``hydra`` node is left out. Value overrides are applied by Hydra's own code, in the order in which
they were written, and everything that can depend on them is resolved afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import GroupDefault, InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from harness.config.hydra_errors import HydraError, wrap_hydra_errors
from harness.config.overrides import InvalidOverride, unknown_setting
from harness.errors import Problem

HYDRA_RESOLVER = "${hydra:"
"""Start of an interpolation of Hydra's own config, such as the choices of groups."""


class Files:
    """The files of a configuration, each read once; composes choices of groups.

    Args:
        loader: Hydra's config loader.
        name: the primary config.
        hydra: overrides of the ``hydra`` node.
    """

    def __init__(self, loader: Any, name: str, hydra: Sequence[str]) -> None:
        """Open the sources."""
        self._loader, self._name = loader, name
        _, repository = loader._parse_overrides_and_create_caching_repo(name, list(hydra))
        self._repository = _CachedRepository(repository)
        self._parts: dict[tuple[str, str], DictConfig] = {}
        self._options: dict[str, list[str]] = {}

    def options(self, group: str) -> list[str]:
        """Return the options of a group, including those in folders of ``hydra.searchpath``."""
        if group not in self._options:
            self._options[group] = self._repository.get_group_options(group, ObjectType.CONFIG)
        return self._options[group]

    def has_group(self, name: str) -> bool:
        """Return whether a config group of this name exists."""
        return bool(self._repository.group_exists(name))

    @wrap_hydra_errors()
    def compose(self, groups: Sequence[Override]) -> "Composed":
        """Compose a choice of groups.

        Raises:
            ConfigError: Hydra cannot, for example because an option does not exist.
        """
        config = _TrackedConfig()
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
        """Return the contents of one file, at its package in the configuration."""
        key = default.config_path, default.package
        if key not in self._parts:
            self._parts[key] = self._loader._load_single_config(default, self._repository).config
        return self._parts[key]


class _CachedRepository:
    """A config repository that loads each file once and drops ``hydra/`` groups from defaults lists."""

    def __init__(self, repository: Any) -> None:
        self._repository = repository
        self._loaded: dict[str, ConfigResult | None] = {}
        self.group_exists = repository.group_exists
        self.config_exists = repository.config_exists
        self.get_group_options = repository.get_group_options
        self.get_schema_source = repository.get_schema_source
        self.get_sources = repository.get_sources

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._loaded:
            if (found := self._repository.load_config(config_path)) is not None:
                found = copy(found)
                found.defaults_list = [item for item in found.defaults_list or [] if not _is_hydra_group(item)]
            self._loaded[config_path] = found
        return self._loaded[config_path]


def _is_hydra_group(default: InputDefault) -> bool:
    return isinstance(default, GroupDefault) and str(default.group).lstrip("/").startswith("hydra/")


class _TrackedConfig(DictConfig):  # type: ignore[misc]
    """A configuration that records which top-level settings are read, as interpolations do from the root."""

    def __init__(self) -> None:
        super().__init__({})
        self.__dict__["_read"] = set()

    def _get_node(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["_read"].add(str(key))
        return super()._get_node(key, *args, **kwargs)

    def read_since(self) -> frozenset[str]:
        """Return the settings that were read since the last call."""
        read = frozenset(self.__dict__["_read"])
        self.__dict__["_read"].clear()
        return read


class Composed:
    """A configuration of one choice of groups.

    Args:
        config: without the ``hydra`` node; nothing is resolved.
        choices: the chosen option of each group.
    """

    def __init__(self, config: _TrackedConfig, choices: Mapping[str, str]) -> None:
        """Start with nothing resolved."""
        self._config, self.choices = config, choices
        self.reads_hydra = contains(OmegaConf.to_container(config, resolve=False), HYDRA_RESOLVER)
        self._known: dict[str, tuple[frozenset[str], Any]] = {}

    def with_values(self, values: Sequence[Override]) -> tuple[dict[str, Any], dict[int, InvalidOverride]]:
        """Apply value overrides.

        Args:
            values: in the order in which they were written.

        Returns:
            The resolved configuration, and the overrides that could not be applied, by position.

        Raises:
            ConfigError: an interpolation cannot be resolved.
        """
        wrong: dict[int, InvalidOverride] = {}
        touched = {item.key_or_group.partition(".")[0] for item in values}
        while True:
            # A failed override may be partly applied, so start over without it.
            with self._restored(touched):
                before = len(wrong)
                for index, item in enumerate(values):
                    if index not in wrong and (problem := self._apply(item)):
                        wrong[index] = problem
                        break
                if len(wrong) == before:
                    return self._resolve(touched), wrong

    def _apply(self, item: Override) -> InvalidOverride | None:
        """Apply one override; return it with its problem if it is invalid."""
        name, line = item.key_or_group, item.input_line or ""
        must_exist = not (item.is_add() or item.is_force_add() or item.is_delete())
        if must_exist and (unknown := unknown_setting(self._config, name, line)):
            return unknown
        try:
            with wrap_hydra_errors():
                ConfigLoaderImpl._apply_overrides_to_config([item], self._config)
        except HydraError as error:
            return InvalidOverride(name, line, Problem("", f"`{line}`: {error.problems[0]}"))
        return None

    @contextmanager
    def _restored(self, touched: set[str]) -> Iterator[None]:
        """Restore these top-level settings on exit."""
        kept = {name: deepcopy(node) for name, node in self._config.items_ex(resolve=False) if name in touched}
        try:
            yield
        finally:
            with open_dict(self._config), flag_override(self._config, "no_deepcopy_set_nodes", True):
                for name in touched & self._config.keys():
                    del self._config[name]
                for name, node in kept.items():
                    self._config[name] = node

    def _resolve(self, touched: set[str]) -> dict[str, Any]:
        """Resolve each top-level setting; cache those that read no overridden setting, as they never change."""
        data: dict[str, Any] = {}
        for name in map(str, self._config):
            read, value = self._known.get(name, (frozenset(), None))
            if not read or read & touched:
                self._config.read_since()
                value = resolve(self._config, name)
                read = self._config.read_since()
                if not self.reads_hydra and not read & touched:
                    self._known[name] = read, value
            data[name] = value
        return data


@wrap_hydra_errors()
def resolve(config: DictConfig, name: str) -> Any:
    """Return a top-level setting as plain data with interpolations resolved.

    Raises:
        ConfigError: an interpolation cannot be resolved.
    """
    value = "???" if OmegaConf.is_missing(config, name) else config[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def contains(config: object, text: str) -> bool:
    """Return whether any string in unresolved plain data contains a text."""
    if isinstance(config, Mapping):
        return any(contains(inner, text) for inner in config.values())
    if isinstance(config, list):
        return any(contains(inner, text) for inner in config)
    return isinstance(config, str) and text in config
