"""The verbs other than running: each parses its arguments, calls the package, and prints the result."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.engine.folder import folder
from harness.errors import ConfigError, Problem


def report(arguments: list[str]) -> None:
    """Print the table of sweeps from the store, or write their whole report to a folder."""
    from harness import report as reports
    from harness.cli.progress import print_published, print_text

    parser = parser_of("report", "Tables, figures and the page of one or several sweeps, from the store.")
    parser.add_argument("sweeps", nargs="*", metavar="sweep", help="the sweep's id, or a prefix; default: the latest")
    parser.add_argument("--format", choices=reports.FORMATS, default="table", help="format to print (default: table)")
    parser.add_argument("--out", type=_out, metavar="DIR", help="write all formats, the page and the figures to DIR")
    parser.add_argument("--baseline", metavar="DEFENSE", help="defense to compare the others with (default: sft)")
    parser.add_argument("--strict", action="store_true", help="fail if rows were trained or evaluated differently")
    parser.add_argument("--with-samples", action="store_true", help="put generations on the page, harmful ones folded")
    parser.add_argument("--to", choices=["wandb"], help="create a W&B workspace and report instead")
    chosen = parser.parse_args(arguments)
    if chosen.to:
        if len(chosen.sweeps) > 1:
            raise ConfigError(["`--to wandb` takes one sweep: its runs on W&B belong to it"])
        _publish_dashboard(chosen.store, next(iter(chosen.sweeps), None), strict=chosen.strict)
        return
    options = {"baseline": chosen.baseline, "strict": chosen.strict, "with_samples": chosen.with_samples}
    if chosen.out is not None:
        print_published(reports.write(chosen.store, chosen.sweeps, chosen.out, **options))
    else:
        print_text(reports.report(chosen.store, chosen.sweeps, chosen.format, **options))


def _out(text: str) -> Path:
    path = folder(text, "--out")
    if path.exists() and not path.is_dir():
        raise ConfigError([f"`--out`: `{text}` is a file; expected a folder."])
    return path


def _store(text: str) -> Path:
    return folder(text, "--store")


def _publish_dashboard(root: Path, name: str | None, *, strict: bool) -> None:
    from harness.cli.progress import print_dashboard
    from harness.engine.lookup import resolve_sweep
    from harness.engine.store import Store
    from harness.wandb_sync.publish import publish_dashboard
    from harness.wandb_sync.sync import settings_of

    sweep = resolve_sweep(Store(root), name)
    print_dashboard(publish_dashboard(root, sweep, settings_of(root, sweep), strict=strict))


def status(arguments: list[str]) -> None:
    """Print the progress of a sweep."""
    from harness.cli.status import print_status, watch_status
    from harness.engine.store import Store
    from harness.sweep import status

    parser = parser_of("status", "Progress of a sweep: stages by kind and state, causes of failure, time left.")
    _add_sweep(parser)
    parser.add_argument("--watch", action="store_true", help="refresh until nothing is running or pending")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    chosen = parser.parse_args(arguments)
    if chosen.watch:
        watch_status(lambda: status.status(Store(chosen.store), chosen.sweep, thorough=False))
    else:
        print_status(status.status(Store(chosen.store), chosen.sweep), as_json=chosen.json)


def logs(arguments: list[str]) -> None:
    """Print the log of a stage."""
    from harness.cli.progress import print_text
    from harness.engine.store import Store
    from harness.sweep import status

    parser = parser_of("logs", "Logs of a stage: of its attempts, and the output of its last job.")
    _add_key(parser)
    chosen = parser.parse_args(arguments)
    for path, text in status.logs(Store(chosen.store), chosen.key):
        print_text(f"==> {path}\n{text}")


def retry(arguments: list[str]) -> None:
    """Resubmit what is not stored."""
    from harness.cli.progress import RunPrinter
    from harness.engine.store import Store
    from harness.sweep import retry

    parser = parser_of("retry", "Resubmit failed, lost and blocked stages, according to the cause of failure.")
    _add_sweep(parser)
    parser.add_argument("changes", nargs="*", metavar="cluster.NAME=VALUE", help="settings to override for this retry")
    chosen = parser.parse_args(arguments)
    if chosen.sweep and "=" in chosen.sweep:
        chosen.sweep, chosen.changes = None, [chosen.sweep, *chosen.changes]
    printer = RunPrinter()
    try:
        retry.retry(Store(chosen.store), chosen.sweep, _changes(chosen.changes), printer)
    finally:
        printer.close()


def cancel(arguments: list[str]) -> None:
    """Cancel the jobs of a sweep."""
    from harness.cli.progress import print_note, print_text
    from harness.engine.store import Store
    from harness.sweep import cancel

    parser = parser_of("cancel", "Cancel the jobs of a sweep, except those that another submitted sweep needs.")
    parser.add_argument("sweep", help="the sweep's id, or a prefix of it")
    chosen = parser.parse_args(arguments)
    done = cancel.cancel(Store(chosen.store), chosen.sweep, notify=print_note)
    print_text(
        f"{done.sweep}: {len(done.ended)} jobs cancelled, {len(done.spared)} kept because other sweeps need them"
    )


def gc(arguments: list[str]) -> None:
    """Remove what no sweep refers to (garbage collection)."""
    from harness.cli.progress import print_note
    from harness.cli.status import print_garbage
    from harness.engine.store import Store
    from harness.sweep.gc import collect

    parser = parser_of("gc", "Garbage collection: remove artifacts and work folders that no sweep or job refers to.")
    parser.add_argument("--older-than", type=_age, default="30d", metavar="AGE", help="30d, 12h or 0d; default: 30d")
    parser.add_argument("--dry-run", action="store_true", help="list what would be removed")
    chosen = parser.parse_args(arguments)
    found = collect(Store(chosen.store), seconds=chosen.older_than, dry_run=chosen.dry_run, notify=print_note)
    print_garbage(found, dry_run=chosen.dry_run)


def sync(arguments: list[str]) -> None:
    """Upload the runs of a sweep that W&B lacks."""
    from dataclasses import replace

    from harness.cli.progress import print_synced, print_text
    from harness.engine.lookup import resolve_sweep
    from harness.engine.store import Store
    from harness.wandb_sync.follow import follow
    from harness.wandb_sync.sync import settings_of
    from harness.wandb_sync.sync import sync as upload
    from harness.wandb_sync.uploader import attached

    parser = parser_of("sync", "Upload missing or outdated runs of a sweep to W&B; idempotent.")
    _add_sweep(parser)
    parser.add_argument("--project", help="default: the run's `tracker.project`, WANDB_PROJECT, or harness")
    parser.add_argument("--entity", help="default: the run's `tracker.entity`, WANDB_ENTITY, or the owner of the key")
    parser.add_argument("--artifacts", action="store_true", default=None, help="upload adapters, with their lineage")
    parser.add_argument("--samples", action="store_true", default=None, help="upload generations (text redacted)")
    parser.add_argument("--follow", action="store_true", help="keep uploading, with curves, until the sweep is done")
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    sweep = resolve_sweep(Store(chosen.store), chosen.sweep)
    options = {name: getattr(chosen, name) for name in ("project", "entity", "artifacts", "samples")}
    overrides = {name: value for name, value in options.items() if value is not None}
    settings = settings_of(chosen.store, sweep)
    if settings.mode == "offline":
        # Offline was meant for the run; a sync uploads, unless WANDB_MODE is set here.
        settings = replace(settings, mode=None)
    settings = replace(settings, **overrides)
    if chosen.follow or chosen.attached:
        with attached(sys.stdin if chosen.attached else None) as ended:
            follow(chosen.store, sweep, settings, ended=ended, notify=print_text)
    else:
        print_synced(upload(chosen.store, sweep, settings))


def stage(arguments: list[str]) -> None:
    """Run one stage of the store."""
    from harness.cli.progress import RunPrinter
    from harness.engine.build import allowed
    from harness.engine.store import Store
    from harness.sweep.run import run_stage

    parser = parser_of("stage", "Run one stage by its key, as a job does. Its inputs must be in the store.")
    _add_key(parser)
    parser.add_argument("--target", action="append", default=[], help="an extra entry of `targets`; repeatable")
    chosen = parser.parse_args(arguments)
    run_stage(Store(chosen.store, allow=allowed(chosen.target)), chosen.key, RunPrinter())


def doctor(arguments: list[str]) -> None:
    """Check this machine; with --fetch, download what an experiment needs."""
    from harness.cli.doctor import examine, fetch
    from harness.cli.progress import print_findings

    parser = parser_of("doctor", "Check this machine: packages, device, Hub, data, store, Slurm, W&B.")
    parser.add_argument("--network", action="store_true", help="also check whether the Hub is reachable")
    parser.add_argument(
        "--fetch",
        metavar="EXPERIMENT",
        help="download what conf/experiment/EXPERIMENT.yaml needs, so that runs can be offline",
    )
    chosen = parser.parse_args(arguments)
    print_findings(fetch(chosen.fetch) if chosen.fetch else examine(chosen.store, network=chosen.network))


def parser_of(verb: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a verb; all verbs take ``--store``."""
    parser = argparse.ArgumentParser(prog=f"harness {verb}", description=description)
    default = os.environ.get("HARNESS_STORE", "store")
    shown = default.replace("%", "%%")
    parser.add_argument("--store", type=_store, default=default, help=f"default: {shown} (HARNESS_STORE, or store)")
    return parser


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", help="the sweep's id, or a prefix of it; default: the latest")


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", help="the 16-digit key of a planned or stored stage, or a prefix of it")


def _age(text: str) -> float:
    seconds = {"d": 86400, "h": 3600, "m": 60}
    if not re.fullmatch("[0-9]+[dhm]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; expected 30d, 12h or 45m")
    return int(text[:-1]) * seconds[text[-1]]


def _changes(texts: Sequence[str]) -> dict[str, object]:
    """Parse overrides such as `cluster.on_oom=shrink`.

    Raises:
        ConfigError: an override is not of this form.
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
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(
                [Problem(name, f"{value!r} is not valid YAML; expected a value as in a file of conf/")]
            ) from None
    return changes


VERBS: dict[str, Callable[[list[str]], None]] = {
    "report": report,
    "status": status,
    "logs": logs,
    "retry": retry,
    "cancel": cancel,
    "gc": gc,
    "sync": sync,
    "stage": stage,
    "doctor": doctor,
}
