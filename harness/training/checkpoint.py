"""Checkpoints of a running training: when they are written, and when one counts as complete.

A checkpoint is what Hugging Face ``Trainer`` writes plus the state of the method, its draws and the meter. Every file
is forced to disk, and the marker, written last, holds the size and the sha256 of each. So a process, a node or a disk
that fails at any moment leaves a checkpoint that is complete or recognisably not; one that is not what its marker says
is never resumed. The older one is deleted only when a newer one has been written, so a complete one remains.
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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.engine.files import append_line, read_json, read_lines, sync_folder, write_json, writing
from harness.engine.manifest import FileRecord, difference, files_in
from harness.engine.stage import never
from harness.errors import Stopped, UnreadableFile
from harness.training.distributed import barrier, broadcast_numbers, rank, world_size

log = logging.getLogger(__name__)
FOLDER = "checkpoints"
MARKER = "complete.json"
STATE = "method.pt"
_DISCARDED = "discarded.jsonl"
_NAME = re.compile(r"checkpoint-(\d+)")
KEPT = 2
"""Checkpoints that exist at once: the last complete one and the one being written."""
LOOK_SECONDS = 1.0
MOST_STEPS_BETWEEN_LOOKS = 10
"""Several processes agree about once a second, since the exchange waits for the device, and at the latest then."""


class Resumable(Protocol):
    """Something whose state travels with a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, the same on every process of the run; all of them ask together."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


def resumable(folder: Path, device: torch.device) -> Path | None:
    """Return the newest checkpoint to go on from, or None; all processes of the run come here together.

    The first process reads every checkpoint and deletes those that are incomplete or damaged. All the others take the
    one that it names.

    Raises:
        StoreError: what is broken cannot be deleted.
    """
    if rank() == 0:
        discard_broken(folder)
    (step,) = broadcast_numbers([max(_checkpoints(folder), default=-1) if rank() == 0 else -1], device)
    return None if step < 0 else folder / f"checkpoint-{step}"


def discard_broken(folder: Path) -> None:
    """Delete what a killed process left half written, and what is not what its marker says.

    Raises:
        StoreError: it cannot be deleted.
    """
    for step, path in sorted(_checkpoints(folder).items()):
        if not (problem := _problem(path)):
            continue
        with writing(path):
            # Also after another kill the stage's facts shall tell of it. One without a marker is nothing unusual.
            if (path / MARKER).exists():
                append_line(folder / _DISCARDED, {"step": step, "problem": problem})
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        log.warning("the checkpoint of step %d is discarded: %s", step, problem)


def discarded(work: Path) -> list[dict[str, Any]]:
    """Return which checkpoints in a stage's work folder were damaged: the ``step`` and the ``problem`` of each."""
    return read_lines(work / FOLDER / _DISCARDED)


def restore(checkpoint: Path, parts: Mapping[str, Resumable]) -> None:
    """Give every part the state it had when the checkpoint was written."""
    states = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(states[name])


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Asks for checkpoints in time, completes each one that ``Trainer`` has written, and stops where it was asked to.

    Args:
        parts: what travels with a checkpoint, by name.
        every_seconds: time between two checkpoints.
        every_steps: write one after every so many optimizer steps instead.
        stop: whether to write one now and raise ``Stopped``; asked at the end of steps.
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
        self._look_at = 0
        self._looked = (0, self._last)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint when it is time or when the run has to stop; all processes decide alike."""
        step = state.global_step
        due = bool(self._every_steps and step % self._every_steps == 0)
        if step >= self._look_at:
            late = not self._every_steps and time.monotonic() - self._last >= self._every_seconds
            answers = (late, self._stop(), self._next_look(step))
            time_to_save, time_to_stop, self._look_at = broadcast_numbers(answers, args.device)
            # After the last step there is nothing to go on with.
            self._stopping = bool(time_to_stop) and step < state.max_steps
            due = due or bool(time_to_save) or self._stopping
        control.should_save = due

    def _next_look(self, step: int) -> int:
        """Return the step after which several processes agree again; one process looks after every step."""
        if world_size() == 1:
            return step + 1
        (before, since), self._looked = self._looked, (step, time.monotonic())
        steps_a_second = (step - before) / max(self._looked[1] - since, 1e-9)
        return step + min(max(int(LOOK_SECONDS * steps_a_second), 1), MOST_STEPS_BETWEEN_LOOKS)

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: Any, **_: Any) -> None:
        """Add the method's state, then the marker.

        Raises:
            Stopped: this is the checkpoint from which the next attempt goes on.
        """
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        barrier()
        states = {name: part.state_dict() for name, part in self._parts.items()}
        if rank() == 0:
            torch.save(states, folder / STATE)
            complete(folder)
        self._last = time.monotonic()
        if self._stopping:
            raise Stopped(
                f"Stopped after step {state.global_step} of {state.max_steps}; run again to go on from there."
            )


def complete(checkpoint: Path) -> None:
    """Force the files of a checkpoint to disk and write the marker that says what they are.

    Raises:
        OSError: the file system refused.
    """
    records = {str(path.relative_to(checkpoint)): FileRecord.of(path, durable=True) for path in files_in(checkpoint)}
    sync_folder(checkpoint)
    write_json(checkpoint / MARKER, {name: asdict(record) for name, record in records.items()}, durable=True)
    sync_folder(checkpoint.parent)


def _problem(checkpoint: Path) -> str:
    """Say why a checkpoint cannot be resumed; nothing if every file is what the marker says."""
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
    """Return what is named as a checkpoint, by its step."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in named if match}
