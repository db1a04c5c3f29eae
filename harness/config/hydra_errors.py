"""Refusals of Hydra, OmegaConf and YAML, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from harness.config.defense_slots import unknown
from harness.errors import ConfigError, HarnessError

_REFUSALS = (HydraException, OmegaConfBaseException, YAMLError)
"""What these libraries raise on purpose."""
_LIBRARIES = frozenset({"hydra", "omegaconf", "yaml", "antlr4"})
_AT_WORK = "harness.sweep.run"
"""The module that Hydra hands over to: what comes from there was composed, or is refused by a boundary of its own."""
_LONGEST = 500
"""Characters of a library's words that are told; they repeat values of the user's, which may be of any length."""


class Refusal(ConfigError):
    """What a library refused, in its own words; where the house knows better ones, they are told instead."""

    @property
    def of_a_plugin(self) -> bool:
        """Whether a plugin of Hydra could not be made, of which a composition without it knows nothing."""
        return isinstance(self.__cause__, InstantiationException | ImportError | RuntimeError)


@contextmanager
def composing() -> Iterator[None]:
    """Around what reads command lines and files of settings: what Hydra raises there is the user's to mend.

    Hydra and what it stands on refuse a mistake with whatever comes up: ValueError, TypeError, IndexError, OSError,
    RecursionError. So it is not the class of an error that tells a mistake from a bug, but where it was raised.

    Raises:
        Refusal: with the words of the library.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if not _of_a_library(error):
            raise
        raise Refusal([_of_a_broken_plugin(error) or _told(error)]) from error


def _told(error: BaseException) -> str:
    """Return the error as one line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown(group, option, error.options)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"`{mark.name}`, line {mark.line + 1}: {error.problem}. Mend the YAML there, or in the line before."
    if isinstance(error, OSError) and error.strerror:
        return f"`{_shortened(str(error.filename))}`: {error.strerror}."
    if isinstance(error, RecursionError):
        return "Hydra cannot read the settings: they are nested too deeply, or refer to themselves."
    words = str(error)
    if isinstance(error, OverrideParseException):
        words = f"`{_shortened(error.override, 80)}`: {words}"
    elif isinstance(error, OmegaConfBaseException) and error.full_key:
        words = f"`{error.full_key}`: {words}"
    if isinstance(error, ConfigCompositionException) and error.__cause__:
        words += f": {error.__cause__}"
    if not isinstance(error, (*_REFUSALS, ValueError)):
        # Raised without an explanation in mind, its words alone (`'name'`, `pop from empty list`) may say little.
        words = f"Hydra cannot read the settings: {type(error).__name__}: {words}"
    # Where Hydra has looked helps nobody who mistyped an option.
    return _shortened(" ".join(words.partition("Config search path")[0].split()))


def unreadable(folder: str | None) -> list[str]:
    """Return which YAML files of a folder are not text in UTF-8; Hydra does not name the file."""
    problems = []
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else []:
        try:
            path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            byte = error.object[error.start]
            problems.append(f"`{path}`, line {line}: the byte {byte:#04x} is no UTF-8. Save the file as UTF-8.")
        except OSError as error:
            problems.append(f"`{path}`: {error.strerror}; expected a file in YAML.")
    return problems


def _of_a_library(error: BaseException) -> bool:
    """Say whether Hydra or what it stands on raised the error, not code of ours nor what that does beyond composing."""
    names = [name for name, _ in _way(error)]
    ours = [place for place, name in enumerate(names) if name.partition(".")[0] == "harness"]
    below = names[ours[-1] + 1 :] if ours else names
    if _AT_WORK in names or not any(name.partition(".")[0] in _LIBRARIES for name in below):
        return False
    # What another plugin raises while it works may be a bug of its own, which wants its traceback.
    plugin_at_work = any(name.startswith("hydra_plugins.") for name in below) and not _of_a_broken_plugin(error)
    return isinstance(error, _REFUSALS) or not plugin_at_work


def _of_a_broken_plugin(error: BaseException) -> str:
    """Return which plugin of somebody else's could not be imported, and why; nothing if that is not what happened."""
    for name, function in _way(error):
        if name.startswith("hydra_plugins.") and function == "<module>":
            why = _shortened(" ".join(f"{type(error).__name__}: {error}".split()))
            return f"Hydra's plugin `{name}` cannot be imported: {why}. Mend or remove the package that brings it."
    return ""


def _way(error: BaseException) -> list[tuple[str, str]]:
    """Return the modules and functions that an error came through, from the outside in."""
    return [
        (str(frame.f_globals.get("__name__", "")), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)
    ]


def _shortened(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text)} characters)"
