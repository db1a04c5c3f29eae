"""Refusals of Hydra, OmegaConf and YAML, in one line."""

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from harness.slots import unknown

REFUSALS = (HydraException, OmegaConfBaseException, MarkedYAMLError)
"""What a mistake in a command line or in a file of settings raises."""


def told(error: Exception) -> str:
    """Return the error as one line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown(group, option, error.options)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"`{mark.name}`, line {mark.line + 1}: {error.problem}. Mend the YAML there, or in the line before."
    cause = f": {error.__cause__}" if isinstance(error, ConfigCompositionException) and error.__cause__ else ""
    # Where Hydra has looked helps nobody who mistyped an option.
    return " ".join(f"{error}{cause}".partition("Config search path")[0].split())
