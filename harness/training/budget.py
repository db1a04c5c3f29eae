"""The budget of one training: everything about the optimizer's path that is not the method, the model or the data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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


class Precision(StrEnum):
    """The number format of the forward pass. Trainables, gradients and the loss are float32 in every case."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long, in which batches and how fast a model is trained (AdamW).

    The defaults are those of the Booster authors' alignment scripts.

    Attributes:
        epochs: passes over the rows.
        batch_size: rows per optimizer step, over all processes together.
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
    moved: ClassVar[Mapping[str, str]] = {
        "micro_batch_size": "how a batch is cut to fit into memory changes no result any more and is a setting of the "
        "cluster: `cluster.micro_batch_size=4`, or `cluster.micro_batch_size={align: 4, finetune: 2}`."
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

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [
            *counts(self, "epochs", "batch_size"),
            *positive(self, "learning_rate", "max_grad_norm", "adam_epsilon"),
            *below_one(self, "warmup_ratio", "adam_beta1", "adam_beta2"),
            *not_negative(self, "weight_decay"),
        ]
        # The constant schedule of transformers ignores warm-up without a word.
        if self.scheduler is Scheduler.CONSTANT and self.warmup_ratio:
            found.append(
                Problem(
                    "warmup_ratio",
                    f"{self.warmup_ratio} has no effect with the scheduler `constant`; "
                    "set it to 0 or choose `constant_with_warmup`",
                )
            )
        return found

    def steps(self, rows: int) -> int:
        """Return the optimizer steps for a number of rows; the last batch of an epoch may be short."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def share(self, processes: int) -> int:
        """Return the most rows of a step that one of several processes takes.

        Raises:
            ConfigError: there are not as many rows as processes.
        """
        if self.batch_size < processes:
            raise ConfigError(
                [
                    Problem(
                        "batch_size",
                        f"{self.batch_size} cannot be shared by {processes} processes; expected at least one "
                        "row for each",
                    )
                ]
            )
        return math.ceil(self.batch_size / processes)
