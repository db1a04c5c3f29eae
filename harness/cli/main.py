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
    """Run the harness and leave with 0, 1 (stages failed, or a bug), 2 (the user's to fix) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What the house logs of a stage goes into the stage's own log file, not to the terminal.
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
        code = _told(error)
    except KeyboardInterrupt:
        code = _told(Interrupted("interrupted; finished stages are stored. Run the same command again to resume."))
    except BrokenPipeError:
        # The reader (`| head`) has seen what it wanted; nothing may be flushed into the closed pipe at exit.
        _close_stdout()
    except OSError as error:
        # Streams have no name; a full disk under the store is told by who writes there.
        if error.filename is not None or not is_full(error):
            raise
        _close_stdout()
        code = _told(HarnessError(f"the output cannot be written: {error.strerror}."))
    sys.exit(code)


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> None:
    """Do what the first word says; without a verb, run.

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
    """See to it that there is something to write to, which takes every character.

    A closed stream (`>&-`) is none to Python; what a terminal in ASCII cannot show is written as its code.
    """
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


def _told(error: HarnessError) -> int:
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
    # Hydra's own sweeper, and others, leave a folder for each sweep.
    with session(printer, "plan"), TemporaryDirectory(prefix="harness-plan-") as folder:
        _hydra([argument for argument in arguments if argument != "--json"], sweep_dir=folder)


def _check_what_hydra_passes_over(given: argparse.Namespace) -> None:
    """Refuse what Hydra takes without a word, or refuses so that `diagnosed` would look for a mistake elsewhere.

    Raises:
        ConfigError: with what is wrong.
    """
    if given.config_dir is not None and not os.path.isdir(given.config_dir):
        raise ConfigError([f"`--config-dir`: there is no folder `{given.config_dir}`."])
    if given.experimental_rerun is not None:
        raise ConfigError(["`--experimental-rerun`: a pickle can run arbitrary code; repeat the original command."])
    asked = {"--run": given.run, "--multirun": given.multirun, "--cfg": given.cfg, "--info": given.info}
    asked |= {"--shell-completion": given.shell_completion}
    if len(chosen := [flag for flag, value in asked.items() if value]) > 1:
        raise ConfigError([f"{' and '.join(chosen)}: a command does one thing; expected one of {', '.join(asked)}."])
    # Two sweep files at once: the grid of one would be lost.
    for text in given.overrides:
        name, _, chosen = text.partition("=")
        if name.lstrip("+") == "sweeps" and "," in chosen:
            advice = "Run them one after another; shared stages run once."
            raise ConfigError([f"`{text}`: a command takes a single sweep file. {advice}"])


def _hydra(arguments: list[str], *, sweep_dir: str | None = None) -> None:
    """Give the command line to Hydra, which comes back through ``sweep.run`` or through the launcher plugin.

    Args:
        arguments: Hydra's flags, and overrides.
        sweep_dir: where a sweeper shall leave what it leaves, unless the user says; None is as configured.
    """
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import DictConfig

    from harness.config.build import diagnosed
    from harness.config.compose import CONF, NAME
    from harness.config.hydra_errors import Refusal, composing

    given = get_args_parser().parse_args(arguments)
    _check_what_hydra_passes_over(given)
    # Told to Hydra as a failed job, an error would be announced by it as well.
    errors: list[HarnessError] = []

    def task(config: DictConfig) -> float | None:
        from harness.sweep.run import run

        try:
            return run(config)
        except HarnessError as error:
            errors.append(error)
            return None

    # Without this Hydra would turn every exception into a message of its own and exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if sweep_dir is not None and given.multirun:
        # Overrides stand together, or argparse does not see them.
        place = arguments.index(given.overrides[0]) if given.overrides else len(arguments)
        arguments = [*arguments[:place], f"hydra.sweep.dir='{sweep_dir}'", *arguments[place:]]
    sys.argv = [sys.argv[0], *arguments]
    refused: list[Refusal] = []
    try:
        with composing():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=NAME)(task)()
    except Refusal as refusal:
        refused.append(refusal)
    except SystemExit as left:
        # Hydra leaves with 1 when it has said what it does not find.
        sys.exit(2 if left.code == 1 else left.code)
    # Not while the refusal is handled: OmegaConf would put its way here into the traceback of the next one.
    if refused:
        raise diagnosed(refused[0], given.overrides, given.config_dir)
    if errors:
        raise errors[0]
