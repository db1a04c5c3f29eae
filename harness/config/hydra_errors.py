"""Errors of Hydra, OmegaConf and YAML that the user can fix, converted to one-line messages."""

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

_EXPLICIT = (HydraException, OmegaConfBaseException, YAMLError)
"""Exception classes that these libraries define for invalid input."""
_LIBRARIES = frozenset({"hydra", "omegaconf", "yaml", "antlr4"})
_RUN_MODULE = "harness.sweep.run"
"""The module that Hydra calls with the composed configuration; errors from there are not errors of composition."""
_SHORT = 80
"""Maximum characters of an override in a message."""
_LONGEST = 500
"""Maximum characters of a library's message, which may repeat user values of any length."""


class HydraError(ConfigError):
    """An error of Hydra or a library below it, with its own message; ``diagnose`` looks for a better one."""

    @property
    def from_plugin(self) -> bool:
        """Whether a Hydra plugin could not be imported or instantiated, which composing alone does not reproduce."""
        return isinstance(self.__cause__, InstantiationException | ImportError | RuntimeError)


@contextmanager
def wrap_hydra_errors() -> Iterator[None]:
    """Convert errors that Hydra raises while it parses command lines and composes files to ``HydraError``.

    Hydra and the libraries below it also raise ValueError, TypeError, IndexError, OSError or RecursionError for invalid
    input, so a user's mistake is distinguished from a bug by where the error was raised, not by its class.

    Raises:
        HydraError: with the message of the library.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        if not _is_library_error(error):
            raise
        raise HydraError([_broken_plugin(error) or _message(error)]) from error


def _message(error: BaseException) -> str:
    """Return the message of an error as one line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown(group, option, error.options)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"`{mark.name}`, line {mark.line + 1}: {error.problem}. Fix the YAML in this line or the one before."
    if isinstance(error, OSError) and error.strerror:
        return f"`{_shorten(str(error.filename))}`: {error.strerror}."
    if isinstance(error, RecursionError):
        return "Hydra cannot read the settings: they are nested too deeply, or refer to themselves."
    text = str(error)
    if isinstance(error, OverrideParseException):
        text = f"`{_shorten(error.override, _SHORT)}`: {text}{_quoted(error.override)}"
    elif isinstance(error, OmegaConfBaseException) and error.full_key:
        text = f"`{error.full_key}`: {text}"
    if isinstance(error, ConfigCompositionException) and error.__cause__:
        text += f": {error.__cause__}"
    if not isinstance(error, (*_EXPLICIT, ValueError)):
        # Messages of other exceptions (`'name'`, `pop from empty list`) mean little without their class.
        text = f"Hydra cannot read the settings: {type(error).__name__}: {text}"
    # The search path is of no use for a mistyped option.
    return _shorten(" ".join(text.partition("Config search path")[0].split()))


def _quoted(override: str) -> str:
    """Return how to write an override whose value has special characters; empty if quotes would not help."""
    name, equals, value = override.partition("=")
    if not equals or not value or set(value) & set("'\"[](){},\n") or len(override) > _SHORT:
        return ""
    return f". A value with special characters needs quotes: \"{name}='{value}'\""


def undecodable_files(folder: str | None) -> list[str]:
    """Return messages about YAML files of a folder that are not valid UTF-8: Hydra's error does not name the file."""
    problems = []
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else []:
        try:
            path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            byte = error.object[error.start]
            problems.append(f"`{path}`, line {line}: the byte {byte:#04x} is not UTF-8. Save the file as UTF-8.")
        except OSError as error:
            problems.append(f"`{path}`: {error.strerror}; expected a YAML file.")
    return problems


def _is_library_error(error: BaseException) -> bool:
    """Return whether Hydra or a library below it raised the error during composition, and not the harness itself."""
    names = [name for name, _ in _frames(error)]
    own = [index for index, name in enumerate(names) if name.partition(".")[0] == "harness"]
    below = names[own[-1] + 1 :] if own else names
    if _RUN_MODULE in names or not any(name.partition(".")[0] in _LIBRARIES for name in below):
        return False
    # An error in the running code of a third-party plugin may be a bug, so its traceback is kept.
    in_plugin = any(name.startswith("hydra_plugins.") for name in below) and not _broken_plugin(error)
    return isinstance(error, _EXPLICIT) or not in_plugin


def _broken_plugin(error: BaseException) -> str:
    """Return a message if the error was raised by the import of a third-party Hydra plugin, otherwise an empty text."""
    for name, function in _frames(error):
        if name.startswith("hydra_plugins.") and function == "<module>":
            why = _shorten(" ".join(f"{type(error).__name__}: {error}".split()))
            return f"Hydra's plugin `{name}` cannot be imported: {why}. Fix or uninstall the package that provides it."
    return ""


def _frames(error: BaseException) -> list[tuple[str, str]]:
    """Return module and function of each frame of an error's traceback, outermost first."""
    return [
        (str(frame.f_globals.get("__name__", "")), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)
    ]


def _shorten(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text)} characters)"
