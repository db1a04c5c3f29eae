"""Terminal output: the plan, the progress and the result of a run."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.cli.doctor import Finding
from harness.engine.estimate import Cost
from harness.engine.plan import Count
from harness.errors import TrackingError
from harness.execution.executor import Event, Outcome
from harness.report import Published
from harness.sweep.reporter import SweepPlan
from harness.sweep.weight_training import WeightTraining, gib
from harness.wandb_sync.publish import PublishedDashboard
from harness.wandb_sync.sync import Synced

LOGGED_EVERY = 0.1
"""If the output is not a terminal, a line is printed each time this share of the plan is done."""


def console(*, to_error: bool = False) -> Console:
    """Return a console that wraps for a terminal and never for a file or a pipe."""
    stream = sys.stderr if to_error else sys.stdout
    return Console(file=stream, soft_wrap=not stream.isatty(), highlight=False)


class PlanPrinter:
    """Prints a plan; nothing runs."""

    def __init__(self, *, as_json: bool) -> None:
        """Choose the format."""
        self._as_json = as_json

    def planned(self, planned: SweepPlan) -> None:
        """Print the counts."""
        if self._as_json:
            stages = {kind: count._asdict() for kind, count in planned.counts.items()}
            costs = {kind: cost._asdict() for kind, cost in planned.costs.items()}
            plan = {"sweep": planned.sweep, "cells": planned.cells, "stages": stages, "predicted": costs}
            plan["skipped"] = [cell._asdict() for cell in planned.skipped]
            plan["weight_trainings"] = [
                training._asdict() | {"memory": training.memory and asdict(training.memory)}
                for training in planned.weight_trainings
            ]
            plan["quantized_bases"] = [base._asdict() for base in planned.quantized_bases]
            print_text(json.dumps(plan, indent=2))
        else:
            out = console()
            out.print(f"sweep {planned.sweep}: {plural(planned.cells, 'cell')}, store {escape(str(planned.store))}")
            out.print(_counts(planned.counts, planned.costs))
            if planned.costs:
                out.print(_predicted(planned))
            for training in planned.weight_trainings:
                out.print(_memory(training))
            for base in planned.quantized_bases:
                size = "not on this machine yet" if base.loaded_bytes is None else gib(base.loaded_bytes)
                out.print(f"memory of the base ({base.model}, {base.form}) in each process: {size}")
            _print_skipped(out, planned)

    def event(self, event: Event) -> None:
        """Nothing runs."""

    def finished(self, planned: SweepPlan, outcome: Outcome) -> None:
        """Nothing runs."""

    def note(self, text: str) -> None:
        """Print a note; JSON output contains the plan only."""
        if not self._as_json:
            console().print(escape(text))


class RunPrinter:
    """Shows a run: a progress bar in a terminal, occasional lines elsewhere."""

    def __init__(self) -> None:
        """Show nothing until there is a plan."""
        self._out = console()
        self._progress: Progress | None = None
        self._bar = TaskID(0)
        self._logged = 0.0
        self._begun = False
        self._failed: set[str] = set()
        self.finished_sweeps: list[tuple[Path, str]] = []

    def planned(self, planned: SweepPlan) -> None:
        """Print what will run."""
        total = sum(count.total for count in planned.counts.values())
        stored = sum(count.stored for count in planned.counts.values())
        self._out.print(
            f"sweep [bold]{planned.sweep}[/bold]: {plural(planned.cells, 'cell')}, {plural(total, 'stage')}, "
            f"{stored} in the store {escape(str(planned.store))}"
        )
        _print_skipped(self._out, planned)
        if stored < total and self._out.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self._out, transient=True,
            )  # fmt: skip
            self._bar = self._progress.add_task("planning", total=total)
            self._progress.start()
        self._logged = stored / total if total else 1.0
        if planned.costs:
            self._out.print(_predicted(planned))

    def event(self, event: Event) -> None:
        """Advance the bar; print failures at once."""
        if event.what == "failed":
            self._failed.add(event.stage.key)
            self._out.print(f"[red]failed[/red] {event.stage.name} {event.stage.key}: {escape(event.message)}")
        if event.what == "busy" and event.message:
            self._out.print(f"waiting: {escape(event.message)}")
        if self._progress is not None:
            running = f"{event.stage.name} {event.stage.key[:8]}" if event.what in ("running", "busy") else None
            self._progress.update(self._bar, completed=event.done, description=running)
        elif event.what == "running" and not self._begun:
            self._begun = True
            self._out.print(f"running {event.stage.name} {event.stage.key[:8]} ...")
        elif event.what in ("executed", "failed") and event.done / event.total >= self._logged + LOGGED_EVERY:
            self._logged = event.done / event.total
            self._out.print(f"{event.done}/{event.total} stages, last {event.stage.name} in {event.seconds:.1f} s")

    def finished(self, planned: SweepPlan, outcome: Outcome) -> None:
        """Print the outcome of the plan."""
        self.close()
        if planned.cells and not outcome.deferred:
            self.finished_sweeps.append((planned.store, planned.sweep))
        if outcome.complete and not outcome.executed and not outcome.deferred:
            self._out.print("nothing to run: all stages are in the store")
            return
        if outcome.deferred:
            self._out.print(_submitted(planned, outcome))
            return
        counts = [f"{len(outcome.executed)} executed", f"{len(outcome.stored)} from the store"]
        counts += [f"[red]{len(outcome.failed)} failed[/red]"] if outcome.failed else []
        counts += [f"{len(outcome.blocked)} blocked by them"] if outcome.blocked else []
        self._out.print(", ".join(counts))
        for key, failure in outcome.failed.items():
            if failure.trace:
                self._out.print(escape(f"\n{failure.kind} {key} raised an unexpected error:\n{failure.trace}"))
            elif key not in self._failed:
                # A stage that was rejected, or that failed in a job, sent no event.
                self._out.print(f"[red]failed[/red] {failure.kind} {key}: {escape(failure.message)}")

    def note(self, text: str) -> None:
        """Print a note."""
        self._out.print(escape(text))

    def close(self) -> None:
        """Release the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def print_findings(findings: Iterable[Finding]) -> None:
    """Print the findings of the doctor as they arrive."""
    out = console()
    for finding in findings:
        mark = "[green]yes[/green]" if finding.present else "[yellow]no [/yellow]"
        out.print(f"{mark} {escape(finding.subject):<22} {escape(finding.detail)}")


def print_published(published: Published) -> None:
    """Print the table and the paths of the files."""
    print_text(published.table)
    for path in published.files:
        print_text(f"wrote {path}")
    if published.others:
        names = ", ".join(path.name for path in published.others)
        print_note(f"{published.others[0].parent} also has figures that are not of this report: {names}")


def print_text(text: str) -> None:
    """Print a finished text unchanged."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()


def print_dashboard(published: PublishedDashboard) -> None:
    """Print the paths and URLs."""
    for path in published.files:
        print_text(f"wrote {path}")
    for address in published.addresses:
        print_text(f"saved {address}")
    if published.reason:
        print_text(f"not saved on a server: {published.reason}")


def print_synced(synced: Synced) -> None:
    """Print the outcome of a sync.

    Raises:
        TrackingError: not everything arrived.
    """
    runs = plural(synced.sent, "run")
    text = f"{runs} written, none uploaded" if synced.offline else f"{runs} uploaded, {synced.current} up to date"
    text += f", {synced.unfinished} not complete in the store" if synced.unfinished else ""
    print_text(f"{text}: {synced.destination}")
    if synced.missing:
        failed = f"{plural(synced.missing, 'run')} could not be uploaded: {synced.reason}"
        raise TrackingError(f"{failed.rstrip('.')}. Sync again; runs that are up to date are not uploaded twice.")


def print_error(text: str) -> None:
    """Print what the user has to fix."""
    lines = text.splitlines()
    head = "harness: " if len(lines) == 1 else f"harness: {len(lines)} problems\n  "
    sys.stderr.write(head + "\n  ".join(lines) + "\n")


def print_note(text: str) -> None:
    """Print a note on standard error, next to the result."""
    sys.stderr.write(f"note: {text}\n")
    sys.stderr.flush()


def _counts(counts: Mapping[str, Count], costs: Mapping[str, Cost]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("distinct", "stored", "to run", "node-hours"):
        table.add_column(name, justify="right")
    for kind, count in counts.items():
        cost = costs.get(kind)
        hours = _hours(cost.seconds) if cost and cost.known == cost.stages else "?" if cost else ""
        table.add_row(kind, str(count.total), str(count.stored), str(count.total - count.stored), hours)
    total, stored = (sum(column) for column in zip(*counts.values(), strict=True))
    table.add_row("all", str(total), str(stored), str(total - stored), style="bold")
    return table


def _predicted(planned: SweepPlan) -> str:
    """Return the predicted cost, as far as earlier stages allow."""
    stages = sum(cost.stages for cost in planned.costs.values())
    known = sum(cost.known for cost in planned.costs.values())
    if not known:
        return "no prediction: the store has no earlier stages of these kinds for this model"
    hours = _hours(sum(cost.seconds for cost in planned.costs.values()))
    gpu_hours = _hours(sum(cost.seconds * planned.gpus.get(kind, 0) for kind, cost in planned.costs.items()))
    gpus = f", {gpu_hours} GPU-hours" if any(planned.gpus.values()) else ""
    partly = "" if known == stages else f" for {known} of {stages} stages; no estimate for the others"
    return f"predicted: {hours} node-hours{gpus}{partly}"


def _hours(seconds: float) -> str:
    """Return seconds in hours, with more decimals where two would be zeros."""
    hours = seconds / 3600
    return f"{hours:.4f}" if 0 < hours < 0.01 else f"{hours:.2f}"


def _memory(training: WeightTraining) -> str:
    """Return the memory of a training of a model's own weights, in GiB per GPU."""
    head = f"memory of {training.kind} ({training.method}, weights of {training.model}) on each GPU"
    if (memory := training.memory) is None:
        return f"{head}: unknown, because the size of the model is not known on this machine yet"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "method": memory.method,
    }
    if training.shards > 1:
        head += f", sharded over {training.shards} processes"
        parts["gathered layers"] = memory.gathered
    return (
        f"{head}: {gib(memory.total)} without activations ({', '.join(f'{k} {gib(v)}' for k, v in parts.items())}); "
        f"with the optimizer's state offloaded, which is not supported: {gib(memory.without_optimizer)}"
    )


def _submitted(planned: SweepPlan, outcome: Outcome) -> str:
    """Return what was submitted, and how to follow it."""
    jobs = set(outcome.submitted.values())
    arrays = {job.partition("_")[0] for job in jobs if "_" in job}
    lines = [
        f"{plural(len(outcome.submitted), 'stage')} in {plural(len(jobs), 'job')} "
        f"({plural(len(arrays), 'array')}, {outcome.calls} calls of sbatch), {len(outcome.stored)} from the store"
    ]
    if outcome.found and not outcome.calls:
        lines = [f"nothing to submit, {len(outcome.stored)} from the store"]
    if outcome.scripts:
        return "\n".join([f"dry run, nothing was submitted: {lines[0]}", f"scripts: {escape(str(outcome.scripts))}"])
    if outcome.left:
        lines.append(f"{plural(outcome.left, 'stage')} will be submitted by a job as the queue drains")
    if outcome.failed:
        lines.append(f"[red]{len(outcome.failed)} not submitted[/red], {len(outcome.blocked)} blocked by them:")
        lines += [
            f"  {escape(failure.kind)} {key} {escape(failure.message)}" for key, failure in outcome.failed.items()
        ]
    if outcome.found:
        queued = f"{plural(outcome.found, 'stage')} of these already had a job in the queue, which keeps its settings"
        lines.append(f"{queued} (to change them, `harness cancel` first)")
    lines.append(f"follow it with: harness status {planned.sweep}")
    return "\n".join(lines)


def _print_skipped(out: Console, planned: SweepPlan) -> None:
    for cell in planned.skipped:
        out.print(escape(f"skipped {' '.join(cell.overrides)}: {' '.join(cell.reasons)}"))


def plural(count: int, noun: str) -> str:
    """Return a count and its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
