"""A folder as a user writes it: with a `~`, by an environment variable, or wrongly."""

import os
from pathlib import Path

from harness.errors import ConfigError


def folder(text: str, where: str) -> Path:
    """Return the folder that a text names; it need not exist.

    Args:
        text: a path; a leading ``~`` or ``~name`` is a home.
        where: what named it, for the message: a setting, an option or an environment variable.

    Raises:
        ConfigError: nothing can have this name, or nobody has this home.
    """
    if not text.strip():
        raise ConfigError([f"`{where}`: it is empty; expected a folder."])
    path = os.path.expanduser(text)
    if path.startswith("~"):
        home = path.partition("/")[0]
        raise ConfigError([f"`{where}`: nobody here has the home `{home}`; `./{home}` is a folder of that name."])
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError([f"`{where}`: `{path[:80]}`: {error.strerror}; expected a folder."]) from None
    except ValueError:
        raise ConfigError([f"`{where}`: {text!r} holds a character that no name has; expected a folder."]) from None
    return Path(path)


def forget_empty_variables(prefix: str) -> None:
    """Take environment variables that are empty for unset, as shells do in `${NAME:-default}`."""
    for name in [name for name, text in os.environ.items() if name.startswith(prefix) and not text.strip()]:
        del os.environ[name]
