"""Hugging Face ``Trainer`` with a method's training step and the run's own data order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from harness.protocols import ActsAfterStep, ScalesLearningRates, TrainStep
from harness.training.distributed import rank
from harness.training.learner import CausalLearner
from harness.training.learning_rates import scale_learning_rates
from harness.training.meter import Meter
from harness.training.order import Order
from harness.training.sharded_state import ShardedMoments

# With this variable set, transformers prints a message about W&B on import; stages do not use W&B.
_mode = os.environ.pop("WANDB_MODE", None)
try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
finally:
    if _mode is not None:
        os.environ["WANDB_MODE"] = _mode

ROWS_OF_HISTORY = 100
"""Approximate number of history entries of a run, whatever its length."""


class StepTrainer(Trainer):  # type: ignore[misc]
    """``Trainer`` whose gradient is computed by a method's training step."""

    def __init__(
        self,
        *,
        step: TrainStep,
        learner: CausalLearner,
        order: Order,
        meter: Meter,
        tracker: Tracker,
        moments: ShardedMoments | None = None,
        **options: Any,
    ) -> None:
        """Store the parts; ``options`` are passed on to ``Trainer``.

        Args:
            step: computes the gradients.
            learner: the model.
            order: of the rows.
            meter: collects the metrics of steps.
            tracker: receives the history.
            moments: what the optimizer keeps of sharded weights; None if they are whole.
            options: of ``Trainer``.
        """
        super().__init__(**options)
        # Otherwise ``Trainer`` counts the labels of every batch and waits for the device to take the number.
        self.model_accepts_loss_kwargs = False
        # Otherwise several processes wrap the model in DDP, which holds another copy of the gradients, rejects sharded
        # weights and has nothing to do: the learner sums over the processes.
        self.accelerator.prepare_model = lambda model, **_: model
        if moments is None:
            # Otherwise all modules of the model are walked in every step, to find what is trained.
            self.accelerator.clip_grad_norm_ = lambda _, limit, **more: torch.nn.utils.clip_grad_norm_(
                learner.trainables, limit, **more
            )
        self._step = step
        self._learner = learner
        self._order = order
        self._meter = meter
        self._tracker = tracker
        self._moments = moments

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, with the method's learning rates and what it does after each step."""
        created = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if created and self._moments:
            self._moments.attach(optimizer)
        if created and isinstance(self._step, ScalesLearningRates):
            scale_learning_rates(optimizer, self._learner.trainables, self._step.learning_rate_factors())
        if created and isinstance(self._step, ActsAfterStep):
            after_step = self._step.after_step
            optimizer.register_step_post_hook(lambda *_: after_step())
        return optimizer

    def training_step(
        self,
        model: Module,  # noqa: ARG002
        inputs: Mapping[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Let the method write its gradient to ``.grad``; the returned loss is unused.

        Raises:
            RuntimeError: it wrote none, so that nothing would be trained.
        """
        self._learner.steps_taken = self.state.global_step
        before = self._learner.gradients_set
        self._meter.add(self._step.backward(inputs))
        if self._learner.gradients_set == before:
            step = type(self._step)
            raise RuntimeError(
                f"`{step.__module__}.{step.__qualname__}.backward` wrote no gradient; expected it to call "
                "`learner.set_gradient` in every step"
            )
        return torch.zeros((), device=self.args.device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's share of the batches."""
        return DataLoader(self.train_dataset, batch_sampler=self._order, collate_fn=self.data_collator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Append an entry to the history and send it to the tracker; ``Trainer``'s summaries of wall times are dropped.

        Raises:
            ModelError: a value of the entry is not finite.
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
                "finite values. Lower `learning_rate` or the strength of the method, or set `max_grad_norm`"
            )
        self.state.log_history.append(row)
        if rank() == 0:
            self._tracker.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save only the trainable parameters, the others do not change; sharded ones are saved with the moments."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            saved = () if self._moments else self.model.named_parameters()
            trainables = {name: p.detach() for name, p in saved if p.requires_grad}
            save_file(trainables, folder / "model.safetensors")

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:  # noqa: ARG002
        """Return 0: the estimate would traverse the whole model at every step and is unused."""
        return 0


@contextmanager
def clearing(model: Module, weights: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Let ``model.zero_grad`` clear these weights alone while the context lasts: it walks all modules in every step."""

    def clear(set_to_none: bool = True) -> None:  # noqa: ARG001
        for weight in weights:
            weight.grad = None

    model.zero_grad = clear  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.zero_grad


class EpochCallback(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the data order, and requests a history entry at the end of each logging interval."""

    def __init__(self, order: Order, *, steps_per_epoch: int, total_steps: int) -> None:
        """Compute the logging interval."""
        self._order = order
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._every = max(1, total_steps // ROWS_OF_HISTORY)

    def on_epoch_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Set the epoch of the data order."""
        self._order.epoch = state.global_step // self._steps_per_epoch

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a history entry at the end of each interval and of the run."""
        control.should_log = state.global_step % self._every == 0 or state.global_step == self._total_steps


class Rows(Dataset[tuple[int, Encoded]]):
    """Encoded examples with their indices, as a map-style ``Dataset``."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        """Store the examples."""
        self._rows = rows

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, Encoded]:
        """Return an index and the example there."""
        return index, self._rows[index]


def collator(pad_id: int) -> Callable[[Sequence[tuple[int, Encoded]]], dict[str, torch.Tensor]]:
    """Return a collate function: tensors ``[batch, time]``, right-padded with ``pad_id``, and indices ``[batch]``."""

    def collate_rows(rows: Sequence[tuple[int, Encoded]]) -> dict[str, torch.Tensor]:
        # An empty share of a short batch becomes one example without supervised positions: its loss is exactly zero.
        numbered = rows or [(0, Encoded([pad_id], [IGNORED]))]
        return collate([row for _, row in numbered], pad_id, [index for index, _ in numbered])

    return collate_rows
