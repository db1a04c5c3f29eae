"""Hugging Face ``Trainer`` with a method in place of its step, and rows in the run's own order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import Module
from torch.utils.data import DataLoader, Dataset

from harness.corpora.batches import collate
from harness.corpora.encode import IGNORED, Encoded
from harness.engine.tracker import Tracker
from harness.errors import ModelError
from harness.protocols import TrainStep
from harness.training.distributed import rank
from harness.training.learner import CausalLearner
from harness.training.meter import Meter
from harness.training.order import Order

# Where this is set, transformers prints a line about W&B while it is imported. No stage knows of W&B.
_mode = os.environ.pop("WANDB_MODE", None)
try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
finally:
    if _mode is not None:
        os.environ["WANDB_MODE"] = _mode

ROWS_OF_HISTORY = 100
"""About how many rows of metrics a run keeps, whatever its length."""


class StepTrainer(Trainer):  # type: ignore[misc]
    """``Trainer`` whose step is a method's."""

    def __init__(
        self,
        *,
        step: TrainStep,
        learner: CausalLearner,
        order: Order,
        meter: Meter,
        tracker: Tracker,
        **options: Any,
    ) -> None:
        """Keep the parts; the options are ``Trainer``'s."""
        super().__init__(**options)
        self._step = step
        self._learner = learner
        self._order = order
        self._meter = meter
        self._tracker = tracker

    def training_step(
        self,
        model: Module,  # noqa: ARG002
        inputs: Mapping[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Let the method leave its gradient in ``.grad``; the returned loss is not used."""
        self._learner.steps_taken = self.state.global_step
        batch = {name: tensor.to(self.args.device) for name, tensor in inputs.items()}
        self._meter.add(self._step.backward(batch))
        return torch.zeros((), device=self.args.device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the steps' batches, of which this process has its share already."""
        return DataLoader(self.train_dataset, batch_sampler=self._order, collate_fn=self.data_collator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Keep a row of the history and send it to the tracker; summaries with wall times are not kept.

        Raises:
            ModelError: a number of the row is not finite.
        """
        if "learning_rate" not in logs:
            return
        norm = logs["grad_norm"]
        limit = self.args.max_grad_norm
        row = {
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "learning_rate": logs["learning_rate"],
            "grad_norm": norm,
            "clip_factor": min(1.0, limit / (norm + 1e-6)) if limit else 1.0,
            **self._meter.take(),
        }
        wrong = [name for name, value in row.items() if not math.isfinite(value)]
        if wrong:
            raise ModelError(
                f"training diverged before step {self.state.global_step}: {', '.join(wrong)} not finite; expected "
                "finite numbers. Lower `learning_rate` or the strength of the method, or set `max_grad_norm`"
            )
        self.state.log_history.append(row)
        if rank() == 0:
            self._tracker.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trainables alone: the rest of the model does not change."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            trainables = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
            save_file(trainables, folder / "model.safetensors")

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:  # noqa: ARG002
        """Return nothing: the estimate walks the whole model at every step and nobody reads it."""
        return 0


class EpochCallback(TrainerCallback):  # type: ignore[misc]
    """Turns the pages of the order, and says when a row of the history is due."""

    def __init__(self, order: Order, *, steps_per_epoch: int, total_steps: int) -> None:
        """Fix the interval."""
        self._order = order
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._every = max(1, total_steps // ROWS_OF_HISTORY)

    def on_epoch_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Turn to the epoch that begins."""
        self._order.epoch = state.global_step // self._steps_per_epoch

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a row at the end of each interval and of the run."""
        control.should_log = state.global_step % self._every == 0 or state.global_step == self._total_steps


class Rows(Dataset[Encoded]):
    """Rows as ``DataLoader`` wants them."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        """Keep the rows."""
        self._rows = rows

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows)

    def __getitem__(self, place: int) -> Encoded:
        """Return one of them."""
        return self._rows[place]


def collator(pad_id: int) -> Callable[[Sequence[Encoded]], dict[str, torch.Tensor]]:
    """Return what makes a batch of rows, ``[batch, time]`` each, padded with ``pad_id``."""

    def make(rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        # An empty share of a short batch becomes one row without supervised positions, which adds exactly nothing.
        return collate(rows or [Encoded([pad_id], [IGNORED])], pad_id)

    return make
