"""What the user sees of a sweep that was asked for: how it stands, and what was cleared up."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta

from rich import filesize
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.console import console, plural, print_text
from harness.control import Status
from harness.engine.collect import Garbage
from harness.engine.states import WHATS

WATCH_SECONDS = 5.0
SHOWN = 20
"""Failed stages that are told in words."""


def print_status(status: Status, *, as_json: bool) -> None:
    """Print how a sweep stands."""
    if as_json:
        left = None if status.seconds_left is None else round(status.seconds_left, 1)
        states = {
            key: {name: text for name, text in asdict(state).items() if text} for key, state in status.states.items()
        }
        described = {"sweep": status.sweep, "over": status.over, "cancelled": status.cancelled, "seconds_left": left}
        print_text(json.dumps({**described, "counts": status.counts, "stages": states}, indent=2))
    else:
        console().print(_standing(status))


def watch_status(look: Callable[[], Status]) -> None:
    """Show how a sweep stands until nothing runs or waits."""
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            status = look()
            live.update(_standing(status), refresh=True)
            if status.over:
                return
            time.sleep(WATCH_SECONDS)


def print_garbage(garbage: Iterable[Garbage], *, dry_run: bool) -> None:
    """Print what was removed, or would be."""
    size = count = 0
    for what, path, bytes_ in garbage:
        print_text(f"{'would remove' if dry_run else 'removed'} {what} {path} ({filesize.decimal(bytes_)})")
        size, count = size + bytes_, count + 1
    print_text(f"{plural(count, 'folder')}, {filesize.decimal(size)}{' would go' if dry_run else ' gone'}")


def _standing(status: Status) -> Group:
    table = Table(box=None, pad_edge=False)
    table.add_column(status.sweep)
    for what in WHATS:
        table.add_column(what, justify="right")
    for kind, counts in status.counts.items():
        table.add_row(kind, *(str(counts[what] or "") for what in WHATS))
    parts: list[RenderableType] = [table]
    if status.cancelled:
        parts.append("cancelled; `harness retry` takes it up again")
    if status.seconds_left is not None:
        parts.append(f"about {timedelta(seconds=round(status.seconds_left))} left")
    shown = [(key, state) for key, state in status.states.items() if state.what in ("failed", "lost")]
    for key, state in shown[:SHOWN]:
        place = ", ".join(part for part in (state.job and f"job {state.job}", state.node) if part)
        cause = f"{state.what}: {state.cause}" if state.cause else state.what
        head = f"{state.kind} {key} {cause}" + (f" ({place})" if place else "")
        parts += [Text(head, style="red"), Text(f"  {state.message.splitlines()[0] if state.message else ''}")]
        parts += [Text(f"  {state.log}", style="dim")] if state.log else []
    if len(shown) > SHOWN:
        parts.append(f"and {len(shown) - SHOWN} more: `harness status --json`")
    return Group(*parts)
