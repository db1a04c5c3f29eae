"""Terminal output of `status` and `gc`: progress of a sweep, and what was removed."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from rich import filesize
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.cli.progress import console, plural, print_text
from harness.engine.gc import Garbage
from harness.execution.state import SWEEP_STATES
from harness.slurm.states import release_hint
from harness.sweep.status import Status

WATCH_SECONDS = 5.0
RARE = ("held", "unneeded")
"""States with a column only if they occur."""
SHOWN = 20
"""How many failed stages are described."""


def print_status(status: Status, *, as_json: bool) -> None:
    """Print the progress of a sweep."""
    if as_json:
        left = None if status.seconds_left is None else round(status.seconds_left, 1)
        states = {
            key: {name: text for name, text in asdict(state).items() if text} for key, state in status.states.items()
        }
        described = {"sweep": status.sweep, "over": status.over, "cancelled": status.cancelled, "seconds_left": left}
        described |= {"strays": list(status.strays), "damage": list(status.damage)}
        print_text(json.dumps({**described, "counts": status.counts, "stages": states}, indent=2))
    else:
        console().print(_summary(status))


def watch_status(read: Callable[[], Status]) -> None:
    """Show the progress of a sweep until nothing is running or pending."""
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            status = read()
            live.update(_summary(status), refresh=True)
            if status.over:
                return
            time.sleep(WATCH_SECONDS)


def print_garbage(garbage: Iterable[Garbage], *, dry_run: bool) -> None:
    """Print what was removed, or would be."""
    size = count = 0
    for what, path, bytes_ in garbage:
        print_text(f"{'would remove' if dry_run else 'removed'} {what} {path} ({filesize.decimal(bytes_)})")
        size, count = size + bytes_, count + 1
    print_text(f"{plural(count, 'folder')}, {filesize.decimal(size)}{' would be freed' if dry_run else ' freed'}")


def _summary(status: Status) -> Group:
    table = Table(box=None, pad_edge=False)
    table.add_column(status.sweep)
    whats = [
        what for what in SWEEP_STATES if what not in RARE or any(counts[what] for counts in status.counts.values())
    ]
    for name in whats:
        table.add_column(name, justify="right")
    for kind, counts in status.counts.items():
        table.add_row(kind, *(str(counts[what] or "") for what in whats))
    parts: list[RenderableType] = [table]
    if status.cancelled:
        parts.append("cancelled; `harness retry` resumes it")
    if status.seconds_left is not None:
        parts.append(f"about {timedelta(seconds=round(status.seconds_left))} left")
    parts += [*_waiting(status), *_held(status)]
    if status.strays:
        jobs = ", ".join(status.strays)
        what = f"{plural(len(status.strays), 'job')} in the queue that no job log lists ({jobs})"
        parts.append(Text(f"{what}: a submission was interrupted; `harness cancel` or the next submission ends them"))
    parts += [Text(text, style="yellow") for text in status.damage[:SHOWN]]
    shown = [(key, state) for key, state in status.states.items() if state.what in ("failed", "lost")]
    for key, state in shown[:SHOWN]:
        location = ", ".join(part for part in (state.job and f"job {state.job}", state.node) if part)
        cause = f"{state.what}: {state.cause}" if state.cause else state.what
        head = f"{state.kind} {key} {cause}" + (f" ({location})" if location else "")
        parts += [Text(head, style="red"), Text(f"  {state.message.splitlines()[0] if state.message else ''}")]
        parts += [Text(f"  {state.log}", style="dim")] if state.log else []
    if len(shown) > SHOWN:
        parts.append(f"and {len(shown) - SHOWN} more: `harness status --json`")
    return Group(*parts)


def _waiting(status: Status) -> Iterator[Text]:
    """Describe what jobs wait for, and since when."""
    waiting = [state for state in status.states.values() if state.what == "pending" and state.reason]
    for reason in dict.fromkeys(state.reason for state in waiting):
        alike = [state for state in waiting if state.reason == reason]
        jobs = {state.job for state in alike}
        stages = f"{plural(len(alike), 'stage')} in {plural(len(jobs), 'job')}"
        yield Text(f"pending: {stages}, {reason}, submitted {_ago(min(state.submitted for state in alike))}")


def _held(status: Status) -> Iterator[Text]:
    """Describe which jobs Slurm holds, how to release them, and how many stages depend on them."""
    held = [state for state in status.states.values() if state.what == "held"]
    for job in list(dict.fromkeys(state.held_by for state in held))[:SHOWN]:
        alike = [state for state in held if state.held_by == job]
        own = next((state for state in alike if state.job == job), alike[0])
        since = f", submitted {_ago(own.submitted)}" if own.submitted else ""
        what = f"held by Slurm: job {job}, {own.reason}, {plural(len(alike), 'stage')} it runs or that depend on it"
        yield Text(f"{what}{since}", style="red")
        yield Text(f"  {release_hint([job])}")


def _ago(submitted: str) -> str:
    """Return how long ago something was, by this machine's clock."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(submitted)).total_seconds()
    return f"{timedelta(seconds=max(round(seconds), 0))} ago"
