"""The command line: Hydra's entry point, and the verbs that are not runs. A thin dispatcher."""

import argparse
import difflib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import NoReturn

from harness.cli.commands import VERBS, parser_of
from harness.engine.files import is_full
from harness.engine.folder import forget_empty_variables
from harness.errors import ConfigError, HarnessError, Interrupted


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the harness; exits with 0, 1 (stages failed, or a bug), 2 (a user's error) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Log records of a stage go to the stage's own log file, not to the terminal.
    logging.getLogger("harness").setLevel(logging.INFO)
    logging.getLogger("harness").addHandler(logging.NullHandler())
    logging.getLogger("harness").propagate = False
    _open_streams()
    forget_empty_variables("HARNESS_")
    code = 0
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except HarnessError as error:
        code = _report(error)
    except KeyboardInterrupt:
        code = _report(Interrupted("interrupted; finished stages are stored. Run the same command again to resume."))
    except BrokenPipeError:
        # The reader (`| head`) has exited; without this, Python would flush into the closed pipe at exit.
        _close_stdout()
    except OSError as error:
        # Without a file name the error is of a stream; a full disk under the store raises a StoreError.
        if error.filename is not None or not is_full(error):
            raise
        _close_stdout()
        code = _report(HarnessError(f"the output cannot be written: {error.strerror}."))
    sys.exit(code)


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> None:
    """Call the verb that is the first argument; without a verb, run.

    Raises:
        ConfigError: the first word is neither a verb, nor a flag, nor an override.
    """
    if arguments == ["--version"]:
        sys.stdout.write(f"harness {version('harness')}\n")
    elif arguments and arguments[0] in _verbs():
        _verbs()[arguments[0]](arguments[1:])
    elif arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "~")):
        raise _unknown_verb(arguments[0], "overrides of a run")
    else:
        _run(arguments)


def _verbs() -> dict[str, Callable[[list[str]], None]]:
    return {"plan": _plan, **VERBS, "help": _help}


def _unknown_verb(word: str, otherwise: str) -> ConfigError:
    close = difflib.get_close_matches(word, _verbs(), n=1)
    guess = f" (did you mean `{close[0]}`?)" if close else ""
    known = ", ".join(f"`{verb}`" for verb in _verbs())
    return ConfigError([f"`{word}`: unknown verb{guess}; expected {known}, or {otherwise}."])


def _open_streams() -> None:
    """Replace closed streams (`>&-`), which Python sets to None, and escape characters that a stream cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _help(arguments: list[str]) -> None:
    """Print the help of the harness, or of a verb.

    Raises:
        ConfigError: there is no such verb.
    """
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        _hydra(["--help"])
    elif arguments[0] in _verbs():
        _verbs()[arguments[0]](["--help"])
    else:
        raise _unknown_verb(arguments[0], "nothing for the general help")


def _report(error: HarnessError) -> int:
    """Print an error and return its exit code."""
    from harness.cli.progress import print_error

    print_error(str(error))
    return error.exit_code


def _run(arguments: list[str]) -> None:
    """Run one cell or, with ``-m``, a sweep; then print the table of available results, even if stages failed."""
    from harness.cli.progress import RunPrinter, print_published
    from harness.report import publish
    from harness.sweep.reporter import session

    printer = RunPrinter()
    try:
        with session(printer):
            _hydra(arguments)
    finally:
        printer.close()
        if printer.finished_sweeps:
            print_published(publish(*printer.finished_sweeps[-1]))


def _plan(arguments: list[str]) -> None:
    """Print which stages a run needs, and how many of them are stored."""
    from harness.cli.progress import PlanPrinter
    from harness.sweep.reporter import session

    if "--help" in arguments or "-h" in arguments:
        parser_of("plan", "Show what a run with these arguments would do.").parse_args(["--help"])
    printer = PlanPrinter(as_json="--json" in arguments)
    # Hydra's own sweeper, and others, create an output folder for each sweep.
    with session(printer, "plan"), TemporaryDirectory(prefix="harness-plan-") as folder:
        _hydra([argument for argument in arguments if argument != "--json"], sweep_dir=folder)


def _check_flags(given: argparse.Namespace) -> None:
    """Reject flags that Hydra ignores, or rejects with an error that `diagnose` would misinterpret.

    Raises:
        ConfigError: a flag is invalid, or a verb comes behind flags.
    """
    if given.config_dir is not None and not os.path.isdir(given.config_dir):
        raise ConfigError([f"`--config-dir`: there is no folder `{given.config_dir}`."])
    if given.experimental_rerun is not None:
        raise ConfigError(["`--experimental-rerun`: a pickle can run arbitrary code; repeat the original command."])
    exclusive = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    exclusive |= {"--shell-completion": given.shell_completion}
    if len(chosen := [flag for flag, value in exclusive.items() if value]) > 1:
        expected = f"expected one of {', '.join(exclusive)}"
        raise ConfigError([f"{' and '.join(chosen)}: these flags exclude each other; {expected}."])
    if misplaced := next((text for text in given.overrides if text in _verbs()), None):
        raise ConfigError([f"`{misplaced}` is a verb; expected it first, as in `harness {misplaced} -m ...`."])
    # With two sweep files, the grid of one would be lost.
    for text in given.overrides:
        name, _, chosen = text.partition("=")
        if name.lstrip("+") == "sweeps" and "," in chosen:
            advice = "Run them one after another; shared stages run once."
            raise ConfigError([f"`{text}`: a command takes a single sweep file. {advice}"])


def _hydra(arguments: list[str], *, sweep_dir: str | None = None) -> None:
    """Pass the command line to Hydra, which calls ``sweep.run`` or the launcher plugin.

    Args:
        arguments: Hydra's flags, and overrides.
        sweep_dir: output folder for a sweeper, unless the user sets one; None is as configured.
    """
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import DictConfig

    from harness.config.build import diagnose
    from harness.config.compose import NAME
    from harness.config.expansion import deferred
    from harness.config.hydra_errors import HydraError, wrap_hydra_errors
    from harness.config.shipped import CONF

    given = get_args_parser().parse_args(arguments)
    _check_flags(given)
    if given.config_dir is not None:
        # The command line is recorded, and may be repeated from another folder.
        absolute = os.path.abspath(given.config_dir)
        words = {given.config_dir: absolute, f"--config-dir={given.config_dir}": f"--config-dir={absolute}"}
        arguments = [words.get(argument, argument) for argument in arguments]
    # Kept here and not raised in the task function, because Hydra would report it as well.
    errors: list[HarnessError] = []

    def task(config: DictConfig) -> float | None:
        from harness.sweep.run import run

        try:
            return run(config)
        except HarnessError as error:
            errors.append(error)
            return None

    # Without this, Hydra replaces every exception by a message of its own and exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if sweep_dir is not None and given.multirun:
        # argparse accepts overrides only as one contiguous block.
        index = arguments.index(given.overrides[0]) if given.overrides else len(arguments)
        arguments = [*arguments[:index], f"hydra.sweep.dir='{sweep_dir}'", *arguments[index:]]
    hydra_errors: list[HydraError] = []
    try:
        with wrap_hydra_errors():
            # Another sweeper would take a sweep of one value for a parameter to search.
            if given.multirun and not any(text.startswith("hydra/sweeper=") for text in given.overrides):
                waiting = dict(zip(given.overrides, deferred(given.overrides), strict=True))
                arguments = [waiting.get(argument, argument) for argument in arguments]
            sys.argv = [sys.argv[0], *arguments]
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=NAME)(task)()
    except HydraError as error:
        hydra_errors.append(error)
    except SystemExit as exit_:
        # Hydra exits with 1 after it has reported something that does not exist.
        sys.exit(2 if exit_.code == 1 else exit_.code)
    # Outside of the except block, so that this traceback does not become part of the next error's.
    if hydra_errors:
        raise diagnose(hydra_errors[0], given.overrides, given.config_dir)
    if errors:
        raise errors[0]
