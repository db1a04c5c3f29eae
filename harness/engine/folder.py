"""Directories as entered by a user: expands ``~`` and reports invalid paths."""

import os
from pathlib import Path

from harness.errors import ConfigError


def folder(text: str, where: str) -> Path:
    """Return the path of a directory entered by a user; it need not exist.

    Args:
        text: a path; a leading ``~`` or ``~name`` is expanded to a home directory.
        where: the setting, option or environment variable it came from, for messages.

    Raises:
        ConfigError: the path is invalid, or the home directory is unknown.
    """
    if not text.strip():
        raise ConfigError([f"`{where}`: it is empty; expected a folder."])
    path = os.path.expanduser(text)
    if path.startswith("~"):
        home = path.partition("/")[0]
        raise ConfigError([f"`{where}`: there is no home directory `{home}`; `./{home}` is a folder of that name."])
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError([f"`{where}`: `{path[:80]}`: {error.strerror}; expected a folder."]) from None
    except ValueError:
        raise ConfigError(
            [f"`{where}`: {text!r} contains a character not allowed in paths; expected a folder."]
        ) from None
    return Path(path)


def forget_empty_variables(prefix: str) -> None:
    """Unset empty environment variables with a prefix, as shells treat them in ``${NAME:-default}``."""
    for name in [name for name, text in os.environ.items() if name.startswith(prefix) and not text.strip()]:
        del os.environ[name]
