"""What the user sees: the plan, the progress, the end of a run. The only user of rich."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.doctor import Finding
from harness.engine.executor import Event, Outcome
from harness.engine.plan import Count
from harness.errors import TrackingError
from harness.mirror.exhibit import Exhibited
from harness.mirror.sync import Synced
from harness.report import Published
from harness.sweep import Planned

LOGGED_EVERY = 0.1
"""Where the output is no terminal, a line is written each time this share of the plan is done."""


def console(*, to_error: bool = False) -> Console:
    """Return a console that wraps for a terminal and never for a file or a pipe."""
    stream = sys.stderr if to_error else sys.stdout
    return Console(file=stream, soft_wrap=not stream.isatty(), highlight=False)


class PlanPrinter:
    """Prints a plan; nothing runs."""

    def __init__(self, *, as_json: bool) -> None:
        """Choose the format."""
        self._as_json = as_json

    def planned(self, planned: Planned) -> None:
        """Print the counts."""
        if self._as_json:
            stages = {kind: count._asdict() for kind, count in planned.counts.items()}
            print_text(json.dumps({"sweep": planned.sweep, "cells": planned.cells, "stages": stages}, indent=2))
        else:
            out = console()
            out.print(f"sweep {planned.sweep}: {_plural(planned.cells, 'cell')}, store {escape(str(planned.store))}")
            out.print(_counts(planned.counts))

    def event(self, event: Event) -> None:
        """Nothing runs."""

    def finished(self, planned: Planned, outcome: Outcome) -> None:
        """Nothing runs."""

    def mirrored(self, text: str) -> None:
        """Nothing runs."""


class RunPrinter:
    """Shows a run: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        """Show nothing until there is a plan."""
        self._out = console()
        self._progress: Progress | None = None
        self._bar = TaskID(0)
        self._told = 0.0
        self._begun = False
        self.finished_sweeps: list[tuple[Path, str]] = []

    def planned(self, planned: Planned) -> None:
        """Say what will run."""
        total = sum(count.total for count in planned.counts.values())
        stored = sum(count.stored for count in planned.counts.values())
        self._out.print(
            f"sweep [bold]{planned.sweep}[/bold]: {_plural(planned.cells, 'cell')}, {_plural(total, 'stage')}, "
            f"{stored} in the store {escape(str(planned.store))}"
        )
        if stored < total and self._out.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self._out, transient=True,
            )  # fmt: skip
            self._bar = self._progress.add_task("planning", total=total)
            self._progress.start()
        self._told = stored / total if total else 1.0

    def event(self, event: Event) -> None:
        """Move the bar; a failure is told at once."""
        if event.what == "failed":
            self._out.print(f"[red]failed[/red] {event.stage.name} {event.stage.key}: {escape(event.message)}")
        if self._progress is not None:
            running = f"{event.stage.name} {event.stage.key[:8]}" if event.what in ("started", "waiting") else None
            self._progress.update(self._bar, completed=event.done, description=running)
        elif event.what == "started" and not self._begun:
            self._begun = True
            self._out.print(f"running {event.stage.name} {event.stage.key[:8]} ...")
        elif event.what in ("executed", "failed") and event.done / event.total >= self._told + LOGGED_EVERY:
            self._told = event.done / event.total
            self._out.print(f"{event.done}/{event.total} stages, last {event.stage.name} in {event.seconds:.1f} s")

    def finished(self, planned: Planned, outcome: Outcome) -> None:
        """Say what became of the plan."""
        self.close()
        if planned.cells:
            self.finished_sweeps.append((planned.store, planned.sweep))
        if outcome.complete and not outcome.executed:
            self._out.print("nothing to run: every stage is in the store")
            return
        words = [f"{len(outcome.executed)} executed", f"{len(outcome.cached)} from the store"]
        words += [f"[red]{len(outcome.failed)} failed[/red]"] if outcome.failed else []
        words += [f"{len(outcome.blocked)} blocked by them"] if outcome.blocked else []
        self._out.print(", ".join(words))
        for key, failure in outcome.failed.items():
            if failure.trace:
                self._out.print(escape(f"\n{failure.kind} {key} met a bug:\n{failure.trace}"))

    def mirrored(self, text: str) -> None:
        """Say what became of the mirror."""
        self._out.print(escape(text))

    def close(self) -> None:
        """Give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def print_findings(findings: Iterable[Finding]) -> None:
    """Print what the doctor found, each as soon as it is known."""
    out = console()
    for finding in findings:
        mark = "[green]yes[/green]" if finding.present else "[yellow]no [/yellow]"
        out.print(f"{mark} {escape(finding.subject):<22} {escape(finding.detail)}")


def print_published(published: Published) -> None:
    """Print the table and name the files."""
    print_text(published.table)
    for path in published.files:
        print_text(f"wrote {path}")


def print_text(text: str) -> None:
    """Print a finished text as it is."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()


def print_exhibited(exhibited: Exhibited) -> None:
    """Name the files and the addresses."""
    for path in exhibited.files:
        print_text(f"wrote {path}")
    for address in exhibited.addresses:
        print_text(f"saved {address}")
    if exhibited.reason:
        print_text(f"not saved on a server: {exhibited.reason}")


def print_synced(synced: Synced) -> None:
    """Say what a sync did.

    Raises:
        TrackingError: not everything arrived.
    """
    said = f"{_plural(synced.sent, 'run')} sent, {synced.current} there already"
    said += f", {synced.unfinished} not complete in the store" if synced.unfinished else ""
    print_text(f"{said}: {synced.place}")
    if synced.missing:
        lacking = f"{_plural(synced.missing, 'run')} did not arrive: {synced.reason}"
        raise TrackingError(f"{lacking.rstrip('.')}. Sync again; what has arrived is not sent twice.")


def print_error(text: str) -> None:
    """Print what the user has to mend."""
    lines = text.splitlines()
    head = "harness: " if len(lines) == 1 else f"harness: {len(lines)} problems\n  "
    sys.stderr.write(head + "\n  ".join(lines) + "\n")


def _counts(counts: Mapping[str, Count]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("distinct", "stored", "to run"):
        table.add_column(name, justify="right")
    for kind, count in counts.items():
        table.add_row(kind, str(count.total), str(count.stored), str(count.total - count.stored))
    total, stored = (sum(column) for column in zip(*counts.values(), strict=True))
    table.add_row("all", str(total), str(stored), str(total - stored), style="bold")
    return table


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
