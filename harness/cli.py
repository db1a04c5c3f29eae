"""The command line: Hydra's entry point, and the verbs for what is not a run. A thin dispatcher."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NoReturn

from harness.errors import ConfigError, HarnessError, Interrupted
from harness.verbs import VERBS, parser_of


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the harness and leave with 0, 1 (stages failed, or a bug), 2 (the user's to mend) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What the house logs of a stage goes into the stage's own log file, not to the terminal.
    logging.getLogger("harness").setLevel(logging.INFO)
    logging.getLogger("harness").addHandler(logging.NullHandler())
    logging.getLogger("harness").propagate = False
    verbs: dict[str, Callable[[list[str]], None]] = {"plan": _plan, **VERBS}
    _check_verb(arguments, list(verbs))
    verb, rest = (verbs[arguments[0]], arguments[1:]) if arguments and arguments[0] in verbs else (_run, arguments)
    code = 0
    try:
        if arguments == ["--version"]:
            sys.stdout.write(f"harness {version('harness')}\n")
            sys.exit(0)
        verb(rest)
        sys.stdout.flush()
    except HarnessError as error:
        code = _told(error)
    except KeyboardInterrupt:
        code = _told(Interrupted("stopped; what was finished is stored. Run the same command again to go on."))
    except BrokenPipeError:
        # The reader (`| head`) has seen what it wanted; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _check_verb(arguments: Sequence[str], verbs: Sequence[str]) -> None:
    """Leave with 2 if the first word is neither a verb, nor a flag, nor an override."""
    if arguments and arguments[0].isalpha() and arguments[0] not in verbs:
        close = difflib.get_close_matches(arguments[0], verbs, n=1)
        guess = f" (did you mean `{close[0]}`?)" if close else ""
        known = ", ".join(f"`{verb}`" for verb in verbs)
        sys.exit(
            _told(ConfigError([f"`{arguments[0]}`: unknown verb{guess}; expected {known}, or overrides of a run."]))
        )


def _told(error: HarnessError) -> int:
    from harness.console import print_error

    print_error(str(error))
    return error.exit_code


def _run(arguments: list[str]) -> None:
    """Run one cell or, with ``-m``, a sweep; then print the table of what there is, even if stages failed."""
    from harness.console import RunPrinter, print_published
    from harness.report import publish
    from harness.sweep import session

    printer = RunPrinter()
    try:
        with session(printer):
            _hydra(arguments)
    finally:
        printer.close()
        if printer.finished_sweeps:
            print_published(publish(*printer.finished_sweeps[-1]))


def _plan(arguments: list[str]) -> None:
    """Say which stages a run would need, and how many of them are stored."""
    from harness.console import PlanPrinter
    from harness.sweep import session

    if "--help" in arguments or "-h" in arguments:
        parser_of("plan", "Say what a run would do: the arguments are those of a run.").parse_args(["--help"])
    with session(PlanPrinter(as_json="--json" in arguments), "plan"):
        _hydra([argument for argument in arguments if argument != "--json"])


def _check_what_hydra_passes_over(config_dir: str | None, overrides: Sequence[str]) -> None:
    """Refuse a folder that is not there, and two sweep files at once, of which the grids would be lost.

    Raises:
        ConfigError: with what is wrong.
    """
    if config_dir is not None and not os.path.isdir(config_dir):
        raise ConfigError([f"`--config-dir`: there is no folder `{config_dir}`."])
    for text in overrides:
        name, _, chosen = text.partition("=")
        if name.lstrip("+") == "sweeps" and "," in chosen:
            advice = "Run one after another; they share what they have in common."
            raise ConfigError([f"`{text}`: a command takes one sweep file. {advice}"])


def _hydra(arguments: list[str]) -> None:
    """Give the command line to Hydra, which comes back through ``sweep.run`` or through the launcher plugin."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import DictConfig

    from harness.compose import CONF, NAME
    from harness.config import diagnosed
    from harness.refusal import REFUSALS

    given = get_args_parser().parse_args(arguments)
    _check_what_hydra_passes_over(given.config_dir, given.overrides)
    # Told to Hydra as a failed job, an error would be announced by it as well.
    errors: list[HarnessError] = []

    def task(config: DictConfig) -> float | None:
        from harness.sweep import run

        try:
            return run(config)
        except HarnessError as error:
            errors.append(error)
            return None

    # Without this Hydra would turn every exception into a message of its own and exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=NAME)(task)()
    except (*REFUSALS, ValueError) as error:
        # Hydra's own words for `attack_ratio=0.1`; any other ValueError is a bug.
        if isinstance(error, ValueError) and "Config group override" not in str(error):
            raise
        raise diagnosed(error, given.overrides, given.config_dir) from error
    if errors:
        raise errors[0]
