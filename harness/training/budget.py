"""The budget of one training: everything about the optimizer's path that is not the method, the model or the data."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple, final

from harness.errors import ConfigError, ModelError
from harness.ranges import below_one, counts, not_negative, positive


class Scheduler(StrEnum):
    """How the learning rate changes over the steps."""

    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"


class Precision(StrEnum):
    """The number format of the forward pass. Trainables, gradients and the loss are float32 in every case."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Portions(NamedTuple):
    """How one optimizer step is cut.

    Attributes:
        rows: rows that each process takes through the model at once.
        micro_batches: how many times it does so.
    """

    rows: int
    micro_batches: int


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long, in which portions and how fast a model is trained (AdamW).

    The defaults are those of the Booster authors' alignment scripts.

    Attributes:
        epochs: passes over the rows.
        batch_size: rows per optimizer step, over all processes and micro-batches together.
        micro_batch_size: rows per process that go through the model at once; None means all of its share. A step then
            averages the combined gradients of its micro-batches with equal weight, which is not the gradient of the
            whole batch when the micro-batches have unequal numbers of supervised tokens.
        learning_rate: the peak learning rate.
        weight_decay: decoupled, as in AdamW.
        scheduler: how the learning rate changes.
        warmup_ratio: share of the steps over which the learning rate rises from 0.
        max_grad_norm: the combined gradient is clipped to this global norm; None does not clip.
        adam_beta1: decay of the first moment.
        adam_beta2: decay of the second moment.
        adam_epsilon: added to the denominator of AdamW.
        precision: the number format of the forward pass.
    """

    name: ClassVar[str] = "budget"
    version: ClassVar[int] = 1

    epochs: int = 20
    batch_size: int = 10
    micro_batch_size: int | None = None
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    scheduler: Scheduler = Scheduler.CONSTANT
    warmup_ratio: float = 0.0
    max_grad_norm: float | None = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    precision: Precision = Precision.FLOAT32

    def problems(self) -> list[str]:
        """Return the range errors of the settings."""
        found = [
            *counts(self, "epochs", "batch_size", "micro_batch_size"),
            *positive(self, "learning_rate", "max_grad_norm", "adam_epsilon"),
            *below_one(self, "warmup_ratio", "adam_beta1", "adam_beta2"),
            *not_negative(self, "weight_decay"),
        ]
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            found.append(f"`micro_batch_size`: {self.micro_batch_size} does not divide `batch_size` {self.batch_size}")
        # The constant schedule of transformers ignores warm-up without a word.
        if self.scheduler is Scheduler.CONSTANT and self.warmup_ratio:
            found.append(
                f"`warmup_ratio`: {self.warmup_ratio} has no effect with the scheduler `constant`; "
                "set it to 0 or choose `constant_with_warmup`"
            )
        return found

    def steps(self, rows: int) -> int:
        """Return the optimizer steps for a number of rows; the last batch of an epoch may be short."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def portions(self, world_size: int, shrink: int = 1) -> Portions:
        """Return how the optimizer step of a run on several processes is cut.

        Args:
            world_size: the processes.
            shrink: the rows taken at once are the most that divide the batch evenly and are at most so much fewer.

        Raises:
            ConfigError: the batch cannot be shared evenly among the processes.
            ModelError: there are fewer rows to take at once than they should be divided by.
        """
        micro_batches = self.micro_batches(world_size)
        rows = self.batch_size // world_size // micro_batches
        if rows < shrink:
            raise ModelError(
                f"a micro-batch of {rows} cannot be divided by {shrink} to save memory; expected a smaller model, "
                "shorter rows (`model.encoding.max_length`), more processes, or a device with more memory"
            )
        smaller = next(size for size in range(rows // shrink, 0, -1) if rows % size == 0)
        return Portions(smaller, micro_batches * (rows // smaller))

    def micro_batches(self, world_size: int) -> int:
        """Return how many micro-batches make one optimizer step.

        Raises:
            ConfigError: the batch cannot be shared evenly among the processes.
        """
        rows = world_size * (self.micro_batch_size or max(1, self.batch_size // world_size))
        if self.batch_size % rows:
            raise ConfigError(
                [
                    f"`batch_size`: {self.batch_size} cannot be shared by {world_size} processes with "
                    f"`micro_batch_size` {self.micro_batch_size}; expected a multiple of {rows}"
                ]
            )
        return self.batch_size // rows
