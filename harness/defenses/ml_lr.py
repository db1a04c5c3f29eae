"""ML-LR: fine-tuning in which a set of modules robust for safety has a higher learning rate than the others.

Yanrui Du, Sendong Zhao, Jiawei Cao, Ming Ma, Danyang Zhao, Shuren Qi, Fenglei Fan, Ting Liu, Bing Qin: "Toward Secure
Tuning: Mitigating Security Risks from Instruction Fine-Tuning" (arXiv 2410.04524), in its first version, submitted to
ICLR 2025 and withdrawn; the later ones are SWAT, which trains the set first instead.

The trainable parameters in ``modules`` (``Mods_Rob``) are trained with ``factor`` times the learning rate of the
budget, the others with that itself. The optimizer has a group of parameters for each: scaling a gradient would change
nothing, because AdamW divides by its size. Weight decay is proportional to the learning rate, and so is scaled too. One
forward and backward pass per step.

Deviations: the search for the set (a classifier of security features scores how much perturbing each module moves them,
then a greedy search) is not implemented: the set is a setting.

Fidelity: equations second-hand. There is no public code, and neither the published sets nor the rates were available.
The defaults, query and key projections at ten times the rate, are the harness's own and no result with them is one of
the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import positive
from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class MLLR:
    """Settings of ML-LR.

    Attributes:
        modules: names of the modules with the other learning rate, a part of the adapter's targets.
        factor: by which their learning rate is multiplied.
    """

    name: ClassVar[str] = "ml_lr"
    version: ClassVar[int] = 1
    beyond_gradients: ClassVar[str] = "trains parts of the model at learning rates of their own"
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    modules: tuple[str, ...] = ("q_proj", "k_proj")
    factor: float = 10.0

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = positive(self, "factor")
        if not self.modules:
            found.append(Problem("modules", "is empty; expected some of the adapter's targets, for example [q_proj]"))
        return found

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> MLLRStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: a module has no trainable parameter, or no other module has one.
        """
        return MLLRStep(self, learner)


@final
class MLLRStep:
    """One run of ML-LR. It has no state."""

    def __init__(self, settings: MLLR, learner: Learner) -> None:
        """Find the parameters with the other learning rate.

        Raises:
            ModelError: a module has no trainable parameter, or no other module has one.
        """
        names = {id(parameter): name.split(".") for name, parameter in learner.module.named_parameters()}
        paths = [names[id(trainable)] for trainable in learner.trainables]
        robust = [any(module in path for module in settings.modules) for path in paths]
        missing = [module for module in settings.modules if not any(module in path for path in paths)]
        if missing:
            raise ModelError(
                f"`ml_lr` sets the learning rate of {', '.join(f'`{module}`' for module in missing)}, of which nothing "
                "is trained; set `modules` to some of the adapter's targets"
            )
        if all(robust):
            raise ModelError(
                "`ml_lr` sets the learning rate of every module that is trained; expected some of them. Set `modules`, "
                "or change `finetune.budget.learning_rate` instead"
            )
        self._learner = learner
        self._factors = [settings.factor if is_robust else 1.0 for is_robust in robust]

    def learning_rate_factors(self) -> Sequence[float]:
        """Return the factor of each trainable parameter's learning rate."""
        return self._factors

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the loss."""
        loss, gradient = self._learner.gradient(batch)
        self._learner.set_gradient(gradient)
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: a step has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: a step has no state."""
