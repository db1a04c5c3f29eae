"""Checkpoints of a training run: when they are written, and when one counts as complete.

A checkpoint is what Hugging Face ``Trainer`` writes plus the state of the method, its batches and the meter, and the
shards of every process where trained weights are sharded (see ``harness.training.sharded_state``). Every file
is fsynced, and the marker, written last, records the size and the sha256 of each. A crash of a process, a node or a
disk at any moment therefore leaves a checkpoint that is either complete or detectably incomplete; a run never resumes
from one that does not match its marker. The previous checkpoint is deleted only after a newer one has been written.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.engine.files import append_line, read_json, read_lines, sync_folder, write_json, writing
from harness.engine.manifest import FileRecord, difference, files_in
from harness.engine.stage import never
from harness.errors import ConfigError, Problem, Stopped, UnreadableFile
from harness.training.distributed import barrier, broadcast_numbers, rank, world_size
from harness.training.sharded_state import joined, separated

log = logging.getLogger(__name__)
FOLDER = "checkpoints"
MARKER = "complete.json"
STATE = "method.pt"
_DISCARDED = "discarded.jsonl"
_NAME = re.compile(r"checkpoint-(\d+)")
KEPT = 2
"""Checkpoints that exist at once: the last complete one and the one being written."""
POLL_SECONDS = 1.0
MAX_STEPS_BETWEEN_POLLS = 10
"""Several processes agree on stopping and saving about once a second, because the exchange synchronizes the device."""


class Resumable(Protocol):
    """An object whose state is saved with a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, identical on all processes but for sharded tensors; a collective call."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


def resumable(folder: Path, device: torch.device) -> Path | None:
    """Return the newest checkpoint to resume from, or None; a collective call.

    Rank 0 verifies every checkpoint, deletes those that are incomplete or damaged, and broadcasts the step to resume
    from.

    Raises:
        StoreError: an invalid checkpoint cannot be deleted.
    """
    if rank() == 0:
        discard_invalid(folder)
    (step,) = broadcast_numbers([max(_checkpoints(folder), default=-1) if rank() == 0 else -1], device)
    return None if step < 0 else folder / f"checkpoint-{step}"


def discard_invalid(folder: Path) -> None:
    """Delete checkpoints that are incomplete (the process was killed) or do not match their marker.

    Raises:
        StoreError: one of them cannot be deleted.
    """
    for step, path in sorted(_checkpoints(folder).items()):
        if not (problem := _problem(path)):
            continue
        with writing(path):
            # Kept in a file so that the stage's facts report it even if this attempt is killed too. A checkpoint
            # without a marker is the normal result of a kill and is not recorded.
            if (path / MARKER).exists():
                append_line(folder / _DISCARDED, {"step": step, "problem": problem})
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        log.warning("discarded the checkpoint of step %d: %s", step, problem)


def discarded(work: Path) -> list[dict[str, Any]]:
    """Return the damaged checkpoints that were deleted from a stage's work folder: ``step`` and ``problem`` of each."""
    return read_lines(work / FOLDER / _DISCARDED)


def restore(checkpoint: Path, parts: Mapping[str, Resumable], mesh: DeviceMesh | None = None) -> None:
    """Load the state of every part from a checkpoint.

    Args:
        checkpoint: a complete checkpoint.
        parts: what was saved with it, by name.
        mesh: the processes over which the trained weights are sharded, if they are.

    Raises:
        ConfigError: its trained weights were sharded and are not now, or the other way round.
    """
    states = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    if set(states) != set(parts):
        was, now = ("fsdp", "ddp") if mesh is None else ("ddp", "fsdp")
        text = (
            f"`{now}`, but {checkpoint} holds weights as `{was}` trains them; expected `{was}` again. Set it in the "
            "resources of the `cluster`, or remove the folder so that the training starts over"
        )
        raise ConfigError([Problem("sharding", text)])
    states = joined(states, checkpoint, mesh)
    for name, part in parts.items():
        part.load_state_dict(states[name])


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Schedules checkpoints, completes each one that ``Trainer`` has written, and stops the run on request.

    Args:
        parts: objects whose state is saved with a checkpoint, by name.
        every_seconds: seconds between two checkpoints.
        every_steps: if set, checkpoint every so many optimizer steps instead.
        stop: returns whether to write a checkpoint and raise ``Stopped``; polled at the end of steps.
    """

    def __init__(
        self,
        parts: Mapping[str, Resumable],
        *,
        every_seconds: float,
        every_steps: int | None = None,
        stop: Callable[[], bool] = never,
    ) -> None:
        """Start the clock."""
        self._parts = dict(parts)
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._stop = stop
        self._stopping = False
        self._last = time.monotonic()
        self._poll_at = 0
        self._last_poll = (0, self._last)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint when one is due or the run has to stop; all processes reach the same decision."""
        step = state.global_step
        due = bool(self._every_steps and step % self._every_steps == 0)
        if step >= self._poll_at:
            late = not self._every_steps and time.monotonic() - self._last >= self._every_seconds
            decision = (late, self._stop(), self._next_poll(step))
            time_to_save, time_to_stop, self._poll_at = broadcast_numbers(decision, args.device)
            # After the last step there is nothing left to resume.
            self._stopping = bool(time_to_stop) and step < state.max_steps
            due = due or bool(time_to_save) or self._stopping
        control.should_save = due

    def _next_poll(self, step: int) -> int:
        """Return the step of the next poll: every step with one process, about every second with several."""
        if world_size() == 1:
            return step + 1
        (before, since), self._last_poll = self._last_poll, (step, time.monotonic())
        steps_per_second = (step - before) / max(self._last_poll[1] - since, 1e-9)
        return step + min(max(int(POLL_SECONDS * steps_per_second), 1), MAX_STEPS_BETWEEN_POLLS)

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: Any, **_: Any) -> None:
        """Add the state of the parts, then the marker.

        Raises:
            Stopped: a stop was requested; the next attempt resumes from this checkpoint.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        barrier()
        states = separated({name: part.state_dict() for name, part in self._parts.items()}, folder)
        barrier()
        if rank() == 0:
            torch.save(states, folder / STATE)
            complete(folder)
        self._last = time.monotonic()
        if self._stopping:
            raise Stopped(
                f"Stopped after step {state.global_step} of {state.max_steps}; run again to resume from there."
            )


def complete(checkpoint: Path) -> None:
    """Fsync the files of a checkpoint and write the marker with their sizes and checksums.

    Raises:
        OSError: the file system rejected a write.
    """
    records = {str(path.relative_to(checkpoint)): FileRecord.of(path, durable=True) for path in files_in(checkpoint)}
    sync_folder(checkpoint)
    write_json(checkpoint / MARKER, {name: asdict(record) for name, record in records.items()}, durable=True)
    sync_folder(checkpoint.parent)


def _problem(checkpoint: Path) -> str:
    """Return why a checkpoint is invalid; an empty string if every file matches the marker."""
    if not (checkpoint / MARKER).exists():
        return "it is incomplete"
    try:
        records = {name: FileRecord(**record) for name, record in read_json(checkpoint / MARKER).items()}
    except UnreadableFile as error:
        return str(error)
    except (TypeError, AttributeError):
        return f"`{MARKER}` does not list files and their checksums"
    if STATE not in records:
        return f"`{MARKER}` does not list `{STATE}`"
    problems = ((name, difference(checkpoint / name, record)) for name, record in records.items())
    return next((f"`{name}` {problem}" for name, problem in problems if problem), "")


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the paths named like a checkpoint, by step."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in named if match}
