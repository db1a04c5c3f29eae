"""One training run: Hugging Face ``Trainer`` with a method's training step.

``Trainer`` provides the loop, the optimizer, the schedule, clipping and checkpoints; the method computes the gradient;
data order and sampled batches depend on the run's seed only. ``Trainer``'s gradient accumulation is not used: a method
receives the batch of a whole step, and the learner splits it into micro-batches that fit into memory.
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
from harness.protocols import (
    ChoosesStart,
    Chosen,
    EditsResult,
    Estimator,
    ProducesOutputs,
    Product,
    TrainMethod,
    WeighsRows,
)
from harness.training.budget import Budget, Optimizer
from harness.training.checkpoint import FOLDER, KEPT, Checkpoints, Resumable, restore, resumable
from harness.training.choice import chosen_rows
from harness.training.distributed import is_sharded, rank, world_size
from harness.training.estimates import EstimatingLearner
from harness.training.meter import Meter
from harness.training.order import Order
from harness.training.placement import placed
from harness.training.plain import PlainStep
from harness.training.sharded_state import ShardedMoments, ShardedWeights, mesh_of
from harness.training.step_trainer import EpochCallback, Rows, StepTrainer, clearing, collator

if TYPE_CHECKING:
    from harness.protocols import Gradient, Learner
    from harness.training.federated import Played


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Result of a training run.

    Attributes:
        steps: optimizer steps.
        metrics: the last entry of the history.
        history: one entry per logging interval: ``step``, ``epoch``, ``learning_rate``,
            ``grad_norm`` (of the combined gradient before clipping, at the entry's step), ``clip_factor`` (the factor
            applied by clipping) and the method's metrics, averaged over the interval.
        rows_at_once: the micro-batch size of each process; None if batches were not split.
        passes: numeric switches of the forward passes that differ from those of a CPU; empty on one.
        edit: facts about the change that the method made to the weights after the last step; empty without one.
        update: forward passes of a run on estimated gradients, and the bytes that it kept between steps, see
            ``EstimatingLearner.facts``; empty if gradients were computed.
        chosen: what the method chose to train on; None if it chooses nothing.
        row_weights: the final weight of each example; empty if the method has none.
        rounds: one record per round of a federated run, see ``harness.training.federated``.
        played: what some clients of one round sent; None in other runs.
        method_outputs: what the method produced for the repair: by name, one tensor per trainable parameter.
    """

    steps: int
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float]]
    rows_at_once: int | None
    passes: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, Any] = field(default_factory=dict)
    update: Mapping[str, int] = field(default_factory=dict)
    chosen: Chosen | None = None
    row_weights: Sequence[float] = ()
    rounds: Sequence[Mapping[str, Any]] = ()
    method_outputs: Mapping[str, Gradient] = field(default_factory=dict, compare=False)
    played: Played | None = field(default=None, compare=False)


def train(
    model: Module,
    *,
    method: TrainMethod | None,
    update: Estimator | None = None,
    rows: Sequence[Encoded],
    pools: Mapping[Role, Pool] | None = None,
    alignment: Mapping[str, Product] | None = None,
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
    """Train a model's trainable parameters in place; resume from the newest complete checkpoint in ``work``, if any.

    Under ``torchrun`` each process receives its share of every batch, and all end with the same weights.

    Args:
        model: a causal language model without DDP or FSDP wrapper, with float32 trainable parameters, for example a
            PEFT model.
        method: the defense in the slot; None is plain supervised fine-tuning.
        update: estimates the gradients that the method asks for from forward passes; None computes them.
        rows: the stage's own training examples.
        pools: examples and batch size of every role in ``method.needs``.
        alignment: the change of the weights by alignment, for a method that declares ``UsesAlignment``.
        budget: hyperparameters of the run.
        seed: the root seed; data order and sampled batches derive from it.
        pad_id: the padding token.
        work: folder for checkpoints, used by this run only.
        tracker: receives each history entry as it is recorded.
        device: a torch device string.
        sharded: shard the model over the processes, see ``harness.training.fsdp``; afterwards it can only be used for
            this run, or gathered.
        micro_batch_size: largest micro-batch of a process; None does not split its share. Results are the same up to
            rounding; with dropout the masks differ.
        shrink: factor by which the micro-batch is reduced.
        stop: returns whether to write a checkpoint and stop; polled at the end of steps.
        checkpoint_every_seconds: seconds between two checkpoints.
        checkpoint_every_steps: if set, checkpoint every so many steps instead.

    Raises:
        DataError: ``rows`` is empty, or the method chooses none of them.
        ModelError: the model does not suit the method or cannot be sharded, a micro-batch cannot be divided further,
            or the run diverged.
        ConfigError: the global batch has fewer examples than there are processes.
        Stopped: a stop was requested; a complete checkpoint is in ``work``.
    """
    if not rows:
        raise DataError("there are no examples to train on; expected at least one with a supervised position")
    folder = work / FOLDER
    drawn = {**(pools or {}), **_own_pools(method, rows)}
    total_steps = budget.steps(len(rows))
    with errors_only(), restoring_state(model):
        # Creating the arguments initializes the process group, which the learner, the draws and the order depend on.
        arguments = training_arguments(budget, folder=folder, seed=seed, total_steps=total_steps, device=device)
        ready = placed(
            model,
            arguments,
            rows=rows,
            pools=drawn,
            alignment=alignment,
            budget=budget,
            sharded=sharded,
            micro_batch_size=micro_batch_size,
            shrink=shrink,
        )
        learner = ready.learner
        chosen = chosen_rows(method, learner, rows, drawn, budget=budget, seed=seed, pad_id=pad_id, work=work)
        if chosen is not None:
            rows = [row for _, row in chosen.rows]
            total_steps = budget.steps(len(rows))
            arguments.warmup_steps = _warmup(budget, total_steps)
        learner.example_count = len(rows)
        batches = RoleBatches(drawn, pad_id=pad_id, seed=seed, rank=rank(), world_size=world_size())
        meter = Meter()
        estimates = None
        if update:
            estimates = EstimatingLearner(
                learner, estimator=update, method=method, seed=derive(seed, "update"), meter=meter
            )
        seen: Learner = estimates or learner
        step = method.start(seen, batches, total_steps) if method else PlainStep(seen)
        if isinstance(step, ChoosesStart):
            learner.assign(step.initial())
        order = Order(len(rows), budget.batch_size, seed=seed, rank=rank(), world_size=world_size())
        moments = ShardedMoments() if is_sharded(learner.trainables[0]) else None
        parts: dict[str, Resumable] = {"step": step, "draws": batches, "meter": meter}
        parts |= {"update": estimates} if estimates else {}
        parts |= {"weights": ShardedWeights(learner.trainables), "moments": moments} if moments else {}
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
            moments=moments,
        )
        checkpoint = resumable(folder, arguments.device)
        if checkpoint:
            restore(checkpoint, parts, mesh_of(learner.trainables))
        with ready.passes.running(model, arguments.device) as trouble, clearing(model, learner.trainables):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        ran = ready.passes.facts(trouble())
        estimated = estimates.facts(trainer.optimizer) if estimates else {}
    edit = step.finish() if isinstance(step, EditsResult) else {}
    history = [dict(row) for row in trainer.state.log_history]
    return TrainReport(
        steps=trainer.state.global_step,
        metrics=history[-1],
        history=history,
        rows_at_once=ready.micro_batch,
        passes=ran,
        edit=edit,
        update=estimated,
        chosen=chosen,
        row_weights=step.row_weights() if isinstance(step, WeighsRows) else (),
        method_outputs=step.outputs() if isinstance(step, ProducesOutputs) else {},
    )


def _own_pools(method: TrainMethod | None, rows: Sequence[Encoded]) -> dict[Role, Pool]:
    """Return what a method samples from the stage's own examples, by role."""
    needs = method.needs if method else ()
    return {
        need.role: Pool(rows[: need.rows], need.batch_size, numbered=True)
        for need in needs
        if need.own and need.batch_size
    }


def _warmup(budget: Budget, total_steps: int) -> int:
    return math.ceil(total_steps * budget.warmup_ratio)


def training_arguments(budget: Budget, *, folder: Path, seed: int, total_steps: int, device: str) -> TrainingArguments:
    """Return the arguments of ``Trainer``; creating them initializes the process group and the device."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=budget.epochs,
        learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay,
        lr_scheduler_type=budget.scheduler.value,
        warmup_steps=_warmup(budget, total_steps),
        max_grad_norm=budget.max_grad_norm or 0.0,
        optim="sgd" if budget.optimizer is Optimizer.SGD else "adamw_torch",
        adam_beta1=budget.adam_beta1,
        adam_beta2=budget.adam_beta2,
        adam_epsilon=budget.adam_epsilon,
        # Only dropout uses the global generators; NumPy's seed has 32 bits.
        seed=derive(seed, "dropout") % 2**32,
        use_cpu=device.startswith("cpu"),
        save_strategy="no",
        save_total_limit=KEPT,
        logging_strategy="no",
        # The filter would synchronize with the device at every step.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


@contextmanager
def errors_only() -> Iterator[None]:
    """Suppress warnings of ``transformers`` about intended behaviour, such as checkpoints without frozen parameters."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def restoring_state(model: Module) -> Iterator[None]:
    """On exit, clear gradients and restore train/eval mode and ``use_cache``, which ``Trainer`` disables."""
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
