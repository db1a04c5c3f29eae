"""One training run: Hugging Face ``Trainer`` with a method in place of its step.

The loop, the optimizer, the schedule, clipping and the checkpoints are ``Trainer``'s; the gradient is the method's; the
order of the rows and every draw come from the run's own seeds. ``Trainer`` accumulates nothing: a method is given the
batch of a whole step, which the learner takes through the model in as many pieces as memory asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import Module
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.engine.seeding import derive
from harness.engine.stage import never
from harness.engine.tracker import Tracker
from harness.errors import DataError
from harness.protocols import ProducesOutputs, TrainMethod
from harness.training.budget import Budget
from harness.training.checkpoint import FOLDER, KEPT, Checkpoints, Resumable, restore, resumable
from harness.training.distributed import rank, world_size
from harness.training.fsdp import shard_frozen
from harness.training.learner import CausalLearner
from harness.training.meter import Meter
from harness.training.order import Order
from harness.training.pieces import rows_at_once
from harness.training.plain import PlainStep
from harness.training.step_trainer import EpochCallback, Rows, StepTrainer, collator

if TYPE_CHECKING:
    from harness.protocols import Gradient


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run did.

    Attributes:
        steps: optimizer steps.
        metrics: the last row of the history.
        history: one row per logging interval: ``step``, ``epoch``, ``learning_rate``,
            ``grad_norm`` (of the combined gradient before clipping, at the row's step), ``clip_factor`` (what clipping
            multiplied it with) and the method's metrics, averaged over the interval.
        rows_at_once: rows that each process took through the model at once, at most; None is all of its share.
        outputs: what the method leaves for the repair: by name, one tensor per trainable.
    """

    steps: int
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    rows_at_once: int | None
    outputs: Mapping[str, Gradient] = field(default_factory=dict, compare=False)


def train(
    model: Module,
    *,
    method: TrainMethod | None,
    rows: Sequence[Encoded],
    pools: Mapping[Role, Pool] | None = None,
    budget: Budget,
    seed: int,
    pad_id: int,
    work: Path,
    tracker: Tracker,
    device: str = "cpu",
    sharded: bool = False,
    micro_batch_size: int | None = None,
    shrink: int = 1,
    stop: Callable[[], bool] = never,
    checkpoint_every_seconds: float = 300.0,
    checkpoint_every_steps: int | None = None,
) -> TrainReport:
    """Train a model's trainables in place; continue from the newest complete checkpoint in ``work`` if there is one.

    Under ``torchrun`` each process takes its share of every batch and all end with the same weights.

    Args:
        model: an unwrapped causal language model with float32 trainables, for example an adapter model.
        method: the defense in the slot; None trains plainly.
        rows: the stage's own rows.
        pools: rows and batch size of every role in ``method.needs``.
        budget: how long and how fast.
        seed: the root seed; the order of rows and the draws are derived from it.
        pad_id: the token that fills shorter rows.
        work: where checkpoints live; belongs to this run alone.
        tracker: receives each row of the history as it is made.
        device: a torch device string.
        sharded: each process keeps only its shard of what is not trained; the model cannot be used otherwise again.
        micro_batch_size: rows that a process takes through the model at once, at most; None is all of its share. The
            result is the same up to rounding; with dropout other activations are dropped.
        shrink: so many times fewer of them.
        stop: whether to write a checkpoint and stop; asked at the end of steps.
        checkpoint_every_seconds: time between two checkpoints.
        checkpoint_every_steps: write a checkpoint after every so many steps instead.

    Raises:
        DataError: there are no rows to train on.
        ModelError: the model does not suit the method or cannot be sharded, a piece cannot be divided further, or the
            run diverged.
        ConfigError: the batch cannot be shared by the processes of the run.
        Stopped: it was asked to, and a complete checkpoint lies in ``work``.
    """
    if not rows:
        raise DataError("there are no rows to train on; expected at least one with a supervised position")
    folder = work / FOLDER
    drawn = pools or {}
    total_steps = budget.steps(len(rows))
    with _quiet(), _as_found(model):
        # Making the arguments joins the process group, which the learner, the draws and the order depend on.
        arguments = _arguments(budget, folder=folder, seed=seed, total_steps=total_steps, device=device)
        shares = [math.ceil(pool.batch_size / world_size()) for pool in drawn.values()]
        share = max(budget.share(world_size()), *shares, 0)
        most = rows_at_once(share, micro_batch_size, shrink)
        if sharded:
            shard_frozen(model, arguments.device)
        else:
            model.to(arguments.device)
        model.train()
        learner = CausalLearner(model, precision=budget.precision, rows_at_once=most)
        batches = RoleBatches(
            drawn,
            pad_id=pad_id,
            seed=seed,
            device=arguments.device,
            rank=rank(),
            world_size=world_size(),
        )
        step = method.start(learner, batches, total_steps) if method else PlainStep(learner)
        order = Order(len(rows), budget.batch_size, seed=seed, rank=rank(), world_size=world_size())
        meter = Meter()
        parts: dict[str, Resumable] = {"step": step, "draws": batches, "meter": meter}
        trainer = StepTrainer(
            model=model,
            args=arguments,
            train_dataset=Rows(rows),
            data_collator=collator(pad_id),
            callbacks=[
                EpochCallback(order, steps_per_epoch=total_steps // budget.epochs, total_steps=total_steps),
                Checkpoints(
                    parts, every_seconds=checkpoint_every_seconds, every_steps=checkpoint_every_steps, stop=stop
                ),
            ],
            step=step,
            learner=learner,
            order=order,
            meter=meter,
            tracker=tracker,
        )
        checkpoint = resumable(folder, arguments.device)
        if checkpoint:
            restore(checkpoint, parts)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = [dict(row) for row in trainer.state.log_history]
    outputs = step.outputs() if isinstance(step, ProducesOutputs) else {}
    return TrainReport(
        steps=trainer.state.global_step, metrics=history[-1], history=history, rows_at_once=most, outputs=outputs
    )


def _arguments(budget: Budget, *, folder: Path, seed: int, total_steps: int, device: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=budget.epochs,
        learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay,
        lr_scheduler_type=budget.scheduler.value,
        warmup_steps=math.ceil(total_steps * budget.warmup_ratio),
        max_grad_norm=budget.max_grad_norm or 0.0,
        optim="adamw_torch",
        adam_beta1=budget.adam_beta1,
        adam_beta2=budget.adam_beta2,
        adam_epsilon=budget.adam_epsilon,
        # Dropout is the only user of the global generators; NumPy takes 32 bits.
        seed=derive(seed, "dropout") % 2**32,
        use_cpu=device.startswith("cpu"),
        save_strategy="no",
        save_total_limit=KEPT,
        logging_strategy="no",
        # The filter reads the loss back from the device at every step.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ``transformers`` from warning about what is intended, such as checkpoints of the trainables alone."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def _as_found(model: Module) -> Iterator[None]:
    """Give the model back without gradients and in the mode in which it was found; ``Trainer`` turns its cache off."""
    training = model.training
    config: Any = model.config
    use_cache = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        model.train(training)
        model.zero_grad()
        if use_cache is not None:
            config.use_cache = use_cache
