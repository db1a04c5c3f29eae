"""The training budget: optimizer, learning-rate schedule, batch size, epochs and precision of one training run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar, final

from harness.engine.checks import below_one, counts, not_negative, positive
from harness.errors import ConfigError, Problem


class Scheduler(StrEnum):
    """How the learning rate changes over the steps."""

    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    LINEAR = "linear"
    COSINE = "cosine"


class Optimizer(StrEnum):
    """What turns the gradient into an update; the weight decay of both is ``learning_rate * weight_decay * w``."""

    ADAMW = "adamw"
    SGD = "sgd"


class Precision(StrEnum):
    """The dtype of the forward pass. Trainable parameters, gradients and the loss are always float32.

    ``TF32`` is float32 whose matrix products a GPU takes with 10 bits of mantissa; a CPU has none and takes float32.
    """

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """Hyperparameters of a training run.

    The defaults are those of the Booster authors' alignment scripts.

    Attributes:
        epochs: passes over the training examples.
        batch_size: global batch size: examples per optimizer step, over all processes.
        learning_rate: the peak learning rate.
        weight_decay: decoupled, as in AdamW.
        scheduler: the learning-rate schedule.
        warmup_ratio: fraction of the steps over which the learning rate rises linearly from 0.
        max_grad_norm: the combined gradient is clipped to this global norm; None disables clipping.
        adam_beta1: decay rate of the first moment.
        adam_beta2: decay rate of the second moment.
        adam_epsilon: added to the denominator of the AdamW update.
        precision: the dtype of the forward pass.
        optimizer: ``sgd`` is without momentum; None is AdamW.
    """

    name: ClassVar[str] = "budget"
    version: ClassVar[int] = 1
    moved: ClassVar[Mapping[str, str]] = {
        "micro_batch_size": "the micro-batch size no longer affects results and is now a setting of the cluster: "
        "`cluster.micro_batch_size=4`, or `cluster.micro_batch_size={align: 4, finetune: 2}`."
    }

    epochs: int = 20
    batch_size: int = 10
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    scheduler: Scheduler = Scheduler.CONSTANT
    warmup_ratio: float = 0.0
    max_grad_norm: float | None = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    precision: Precision = Precision.FLOAT32
    optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        """Take AdamW for None, so that spelling it out changes no key."""
        if self.optimizer is Optimizer.ADAMW:
            object.__setattr__(self, "optimizer", None)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [
            *counts(self, "epochs", "batch_size"),
            *positive(self, "learning_rate", "max_grad_norm", "adam_epsilon"),
            *below_one(self, "warmup_ratio", "adam_beta1", "adam_beta2"),
            *not_negative(self, "weight_decay"),
        ]
        # The constant schedule of transformers silently ignores warm-up.
        if self.scheduler is Scheduler.CONSTANT and self.warmup_ratio:
            found.append(
                Problem(
                    "warmup_ratio",
                    f"{self.warmup_ratio} has no effect with the scheduler `constant`; "
                    "set it to 0 or choose `constant_with_warmup`",
                )
            )
        if self.optimizer is Optimizer.SGD:
            adam = {each.name: each.default for each in fields(self) if each.name.startswith("adam_")}
            found += [
                Problem(name, f"{getattr(self, name)} has no effect with the optimizer `sgd`; leave it out")
                for name, default in adam.items()
                if getattr(self, name) != default
            ]
        return found

    def steps(self, rows: int) -> int:
        """Return the number of optimizer steps for ``rows`` examples; the last batch of an epoch may be smaller."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def share(self, processes: int) -> int:
        """Return the largest number of examples of a global batch that one process receives.

        Raises:
            ConfigError: the global batch has fewer examples than there are processes.
        """
        if self.batch_size < processes:
            raise ConfigError(
                [
                    Problem(
                        "batch_size",
                        f"{self.batch_size} cannot be split over {processes} processes; expected at least one "
                        "example per process",
                    )
                ]
            )
        return math.ceil(self.batch_size / processes)
