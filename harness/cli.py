"""The command line: Hydra's entry point, and the verbs for what is not a run. A thin dispatcher."""

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from harness.errors import ConfigError, HarnessError, Interrupted


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the harness and leave with 0, 1 (stages failed, or a bug), 2 (the user's to mend) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What the house logs of a stage goes into the stage's own log file, not to the terminal.
    logging.getLogger("harness").setLevel(logging.INFO)
    logging.getLogger("harness").addHandler(logging.NullHandler())
    logging.getLogger("harness").propagate = False
    verbs: dict[str, Callable[[list[str]], None]] = {
        "plan": _plan,
        "report": _report,
        "status": _status,
        "logs": _logs,
        "retry": _retry,
        "cancel": _cancel,
        "gc": _gc,
        "stage": _stage,
        "doctor": _doctor,
    }
    _check_verb(arguments, list(verbs))
    verb, rest = (verbs[arguments[0]], arguments[1:]) if arguments and arguments[0] in verbs else (_run, arguments)
    code = 0
    try:
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
        _parser("plan", "Say what a run would do: the arguments are those of a run.").parse_args(["--help"])
    with session(PlanPrinter(as_json="--json" in arguments), "plan"):
        _hydra([argument for argument in arguments if argument != "--json"])


def _hydra(arguments: list[str]) -> None:
    """Give the command line to Hydra, which comes back through ``sweep.run`` or through the launcher plugin."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from harness.compose import CONF, NAME
    from harness.config import diagnosed

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
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra's own words for `attack_ratio=0.1`; any other ValueError is a bug.
        if isinstance(error, ValueError) and "Config group override" not in str(error):
            raise
        given = get_args_parser().parse_args(arguments)
        raise diagnosed(error, given.overrides, given.config_dir) from error
    if errors:
        raise errors[0]


def _report(arguments: list[str]) -> None:
    """Print the table of a sweep from the store, or write its whole report to a folder."""
    from harness.console import print_published, print_text
    from harness.report import FORMATS, report, write

    parser = _parser("report", "Tidy rows, tables, figures and the page of a sweep, from the store.")
    _add_sweep(parser)
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write all formats, the page and the figures to DIR")
    parser.add_argument("--baseline", metavar="DEFENSE", help="compare the others with it (default: sft)")
    parser.add_argument("--strict", action="store_true", help="refuse rows that were not trained and evaluated alike")
    parser.add_argument("--with-samples", action="store_true", help="put answers on the page, harmful ones folded away")
    chosen = parser.parse_args(arguments)
    how = {"baseline": chosen.baseline, "strict": chosen.strict, "with_samples": chosen.with_samples}
    if chosen.out is not None:
        print_published(write(chosen.store, chosen.sweep, chosen.out, **how))
    else:
        print_text(report(chosen.store, chosen.sweep, chosen.format, **how))


def _status(arguments: list[str]) -> None:
    """Say how a sweep stands."""
    from harness.console import print_status, watch_status
    from harness.control import status
    from harness.engine.store import Store

    parser = _parser("status", "How a sweep stands: stages by kind, why some failed, and when it will be done.")
    _add_sweep(parser)
    parser.add_argument("--watch", action="store_true", help="look again until nothing runs or waits")
    parser.add_argument("--json", action="store_true", help="everything, for a program")
    chosen = parser.parse_args(arguments)
    if chosen.watch:
        watch_status(lambda: status(Store(chosen.store), chosen.sweep))
    else:
        print_status(status(Store(chosen.store), chosen.sweep), as_json=chosen.json)


def _logs(arguments: list[str]) -> None:
    """Print the log of a stage."""
    from harness.console import print_text
    from harness.control import logs
    from harness.engine.store import Store

    parser = _parser("logs", "What a stage's attempts logged, and what its last job printed.")
    _add_key(parser)
    chosen = parser.parse_args(arguments)
    for path, text in logs(Store(chosen.store), chosen.key):
        print_text(f"==> {path}\n{text}")


def _retry(arguments: list[str]) -> None:
    """Submit again what is not stored."""
    from harness.console import RunPrinter
    from harness.control import retry
    from harness.engine.store import Store

    parser = _parser("retry", "Submit again what failed or was lost, and what that blocked; each by its cause.")
    _add_sweep(parser)
    parser.add_argument("changes", nargs="*", metavar="cluster.NAME=VALUE", help="settings that shall be others now")
    chosen = parser.parse_args(arguments)
    if chosen.sweep and "=" in chosen.sweep:
        chosen.sweep, chosen.changes = None, [chosen.sweep, *chosen.changes]
    printer = RunPrinter()
    try:
        retry(Store(chosen.store), chosen.sweep, _changes(chosen.changes), printer)
    finally:
        printer.close()


def _cancel(arguments: list[str]) -> None:
    """End the jobs of a sweep."""
    from harness.console import print_text
    from harness.control import cancel
    from harness.engine.store import Store

    parser = _parser("cancel", "End the jobs of a sweep, except those that another submitted sweep needs.")
    parser.add_argument("sweep", help="the sweep's id, or how it begins")
    chosen = parser.parse_args(arguments)
    done = cancel(Store(chosen.store), chosen.sweep)
    print_text(f"{done.sweep}: {len(done.ended)} jobs ended, {len(done.spared)} left to other sweeps that need them")


def _gc(arguments: list[str]) -> None:
    """Remove what no sweep names any more."""
    from harness.console import print_garbage
    from harness.control import collect
    from harness.engine.store import Store

    parser = _parser("gc", "Remove artifacts and work folders that no sweep of the store names and nothing works on.")
    parser.add_argument("--older-than", type=_age, default="30d", metavar="AGE", help="30d, 12h or 0d; default: 30d")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    chosen = parser.parse_args(arguments)
    found = collect(Store(chosen.store), seconds=chosen.older_than, dry_run=chosen.dry_run)
    print_garbage(found, dry_run=chosen.dry_run)


def _stage(arguments: list[str]) -> None:
    """Run one stage of the store by hand."""
    from harness.console import RunPrinter
    from harness.engine.store import Store
    from harness.sweep import run_stage

    parser = _parser("stage", "Run one stage by its key, as a job does. What it reads must be in the store.")
    _add_key(parser)
    parser.add_argument("--target", action="append", default=[], help="as `targets` of the configuration; repeatable")
    chosen = parser.parse_args(arguments)
    run_stage(Store(chosen.store, allow=("harness.", *chosen.target)), chosen.key, RunPrinter())


def _doctor(arguments: list[str]) -> None:
    """Say what this machine has; with --fetch, bring what an experiment needs."""
    from harness.console import print_findings
    from harness.doctor import examine, fetch

    parser = _parser("doctor", "What this machine has: packages, device, Hub, data, store, Slurm, W&B.")
    parser.add_argument(
        "--fetch",
        metavar="EXPERIMENT",
        help="download what conf/experiment/EXPERIMENT.yaml needs, so that runs can be offline",
    )
    chosen = parser.parse_args(arguments)
    print_findings(fetch(chosen.fetch) if chosen.fetch else examine(chosen.store))


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"harness {verb}", description=description)
    default = Path(os.environ.get("HARNESS_STORE", "store"))
    parser.add_argument("--store", type=Path, default=default, help=f"default: {default} (HARNESS_STORE, or store)")
    return parser


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", help="the sweep's id, or how it begins; default: the latest")


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", help="the 16 digits of a planned or stored stage, or how they begin")


def _age(text: str) -> float:
    seconds = {"d": 86400, "h": 3600, "m": 60}
    if not re.fullmatch("[0-9]+[dhm]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no age; expected 30d, 12h or 45m")
    return int(text[:-1]) * seconds[text[-1]]


def _changes(texts: Sequence[str]) -> dict[str, object]:
    """Read `cluster.on_oom=shrink`.

    Raises:
        ConfigError: it is something else.
    """
    import yaml

    wrong = [text for text in texts if not text.startswith(("cluster.", "tracker.")) or "=" not in text]
    if wrong:
        raise ConfigError(
            [f"`{text}`: a retry changes where stages run, not what they are; expected `cluster.x=y`" for text in wrong]
        )
    changes: dict[str, object] = {}
    for name, value in (text.split("=", maxsplit=1) for text in texts):
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(
                [f"`{name}`: {value!r} is not valid YAML; expected a value as in a file of conf/"]
            ) from None
    return changes
