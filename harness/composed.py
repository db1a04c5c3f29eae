"""Composed: what Hydra makes of one choice of groups, and the values of many cells laid over it in turn.

Composing takes Hydra a tenth of a second, most of it for reading files and for its own settings. Here every file is
read once and Hydra's own settings are left out. Values are laid over by Hydra's own code, in the order in which they
were written, and whatever could depend on them is resolved afterwards.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from harness.overlay import Misfit, unknown_setting
from harness.refusal import Refusal, composing

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
        self._hydra, self._read = loader._parse_overrides_and_create_caching_repo(name, list(hydra))

    def has_group(self, name: str) -> bool:
        """Whether a name is that of a config group."""
        return bool(self._read.group_exists(name))

    @composing()
    def compose(self, groups: Sequence[Override]) -> "Composed":
        """Compose a choice of groups.

        Raises:
            ConfigError: Hydra cannot, for example because an option does not exist.
        """
        defaults = create_defaults_list(
            repo=self._read,
            config_name=self._name,
            overrides_list=[*self._hydra, *groups],
            prepend_hydra=True,
            skip_missing=False,
        )
        ours = [item for item in defaults.defaults if not str(item.config_path).startswith("hydra/")]
        config = self._loader._compose_config_from_defaults_list(defaults=ours, repo=_Lent(self._read))
        config.pop("hydra", None)
        OmegaConf.set_struct(config, True)
        return Composed(config, {str(key): str(value) for key, value in defaults.overrides.known_choices.items()})


class _Lent:
    """Gives out copies of what was read: what Hydra merges, it takes apart."""

    def __init__(self, read: Any) -> None:
        self._read = read

    def load_config(self, config_path: str) -> ConfigResult | None:
        found = self._read.load_config(config_path)
        if found is None:
            return None
        lent = copy(found)
        lent.config = deepcopy(found.config)
        return lent

    def get_schema_source(self) -> ConfigSource:
        return self._read.get_schema_source()


class Composed:
    """A configuration of one choice of groups.

    Args:
        config: without Hydra's own part; nothing is resolved.
        choices: the chosen option of each group.
    """

    def __init__(self, config: DictConfig, choices: Mapping[str, str]) -> None:
        """Find out what no value can change except by its name."""
        self._config, self.choices = config, choices
        raw = OmegaConf.to_container(config, resolve=False)
        assert isinstance(raw, dict), "a configuration is a mapping"
        self._fixed = {str(name): value for name, value in raw.items() if not mentions(value, "${")}
        self.asks_hydra = mentions(raw, ASKS_HYDRA)

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
            return Misfit(name, line, f"`{line}`: {refusal}")
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
        """Resolve what could depend on a value; the rest is the same in every cell, and shared."""
        fixed = {name: value for name, value in self._fixed.items() if name not in touched}
        return fixed | resolved(self._config, without=fixed)


@composing()
def resolved(config: DictConfig, *, without: Container[str] = ()) -> dict[str, Any]:
    """Return the top-level settings as plain data with interpolations resolved.

    Args:
        config: the whole configuration.
        without: names that are not wanted.

    Raises:
        ConfigError: an interpolation cannot be resolved.
    """
    return {str(name): _plain(config, name) for name in config if name not in without}


def mentions(config: object, words: str) -> bool:
    """Whether a text of unresolved plain data holds some words."""
    if isinstance(config, Mapping):
        return any(mentions(inner, words) for inner in config.values())
    if isinstance(config, list):
        return any(mentions(inner, words) for inner in config)
    return isinstance(config, str) and words in config


def _plain(config: DictConfig, name: str) -> Any:
    value = "???" if OmegaConf.is_missing(config, name) else config[name]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
