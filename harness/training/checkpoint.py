"""Checkpoints of a running training: when they are written, and when one counts as complete.

A checkpoint is what Hugging Face ``Trainer`` writes plus the state of the method, its draws and the meter. The marker
is written last and lists the size of every file, so a process that dies at any moment leaves a checkpoint that is
complete or recognisably not. The older one is deleted only when a newer one has been written, so a complete one always
remains.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.engine.stopping import never
from harness.errors import Stopped
from harness.training.processes import as_first_says, rank, wait_for_all, world_size

MARKER = "complete.json"
STATE = "method.pt"
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


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None."""
    found = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return max(found, key=_step_of, default=None)


def discard_incomplete(folder: Path) -> None:
    """Delete what a killed process left half written."""
    for path in folder.glob("checkpoint-*"):
        if not _is_complete(path):
            shutil.rmtree(path)


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
            time_to_save, time_to_stop, self._look_at = as_first_says(answers, args.device)
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
        wait_for_all()
        states = {name: part.state_dict() for name, part in self._parts.items()}
        if rank() == 0:
            torch.save(states, folder / STATE)
            sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
            draft = folder.parent / f"{folder.name}.marker"
            draft.write_text(json.dumps(sizes))
            draft.replace(folder / MARKER)
        self._last = time.monotonic()
        if self._stopping:
            raise Stopped(
                f"Stopped after step {state.global_step} of {state.max_steps}; run again to go on from there."
            )


def _is_complete(checkpoint: Path) -> bool:
    marker = checkpoint / MARKER
    if not marker.is_file():
        return False
    sizes: dict[str, int] = json.loads(marker.read_text())
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == sizes[name] for name in sizes)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
