"""SWAT: fine-tuning that begins with a set of modules robust for safety and goes on with all of them.

Yanrui Du, Sendong Zhao, Jiawei Cao, Ming Ma, Danyang Zhao, Shuren Qi, Fenglei Fan, Ting Liu, Bing Qin: "Toward Secure
Tuning: Mitigating Security Risks from Instruction Fine-Tuning", ACL 2026 (arXiv 2410.04524; its first version, with a
learning rate per module, is called ML-LR).

In the first ``warmup_share`` of the optimizer steps only the trainable parameters in ``modules`` (``Mods_Rob``) are
trained: the optimizer neither updates nor decays the others. After that all are trained. One forward and backward pass
per step.

Deviations: the search for the set (a classifier of security features scores how much perturbing each module moves them,
then a greedy search) is not implemented: the set is a setting.

Fidelity: equations second-hand. The two phases are those of the paper's abstract; there is no public code, and neither
the published sets nor the length of the warm-up was available. The defaults, query and key projections in a tenth of
the steps, are the harness's own and no result with them is one of the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.checks import shares
from harness.errors import ModelError, Problem
from harness.mechanisms.frozen_parameters import partial_gradient

if TYPE_CHECKING:
    from harness.protocols import Batch, BatchProvider, DataRequirement, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class SWAT:
    """Settings of SWAT.

    Attributes:
        modules: names of the modules that are trained from the start, a part of the adapter's targets.
        warmup_share: fraction of all optimizer steps in which only they are trained.
    """

    name: ClassVar[str] = "swat"
    version: ClassVar[int] = 2
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True
    gradients_per_step: ClassVar[int] = 1

    modules: tuple[str, ...] = ("q_proj", "k_proj")
    warmup_share: float = 0.1

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = shares(self, "warmup_share")
        if not self.modules:
            found.append(Problem("modules", "is empty; expected some of the adapter's targets, for example [q_proj]"))
        return found

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SWATStep:  # noqa: ARG002
        """Start a run.

        Raises:
            ModelError: a module has no trainable parameter, or no other module has one.
        """
        return SWATStep(self, learner, total_steps)


@final
class SWATStep:
    """One run of SWAT. It has no state between steps besides their number."""

    def __init__(self, settings: SWAT, learner: Learner, total_steps: int) -> None:
        """Find the parameters that are frozen during the warm-up.

        Raises:
            ModelError: a module has no trainable parameter, or no other module has one.
        """
        names = {id(parameter): name.split(".") for name, parameter in learner.module.named_parameters()}
        paths = [names[id(trainable)] for trainable in learner.trainables]
        self._learner = learner
        self._warmup_steps = ceil(Fraction(str(settings.warmup_share)) * total_steps)
        self._frozen = [not any(module in path for module in settings.modules) for path in paths]
        missing = [module for module in settings.modules if not any(module in path for path in paths)]
        if missing:
            raise ModelError(
                f"`swat` warms up {', '.join(f'`{module}`' for module in missing)}, of which nothing is trained; set "
                "`modules` to some of the adapter's targets"
            )
        if not any(self._frozen):
            raise ModelError(
                "`swat` warms up every module that is trained, so there is no second phase; set `modules` to some of "
                "the adapter's targets"
            )

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the modules of this phase; report the loss and the number of frozen parameters."""
        warming_up = self._learner.steps_taken < self._warmup_steps
        frozen = self._frozen if warming_up else [False] * len(self._frozen)
        loss, gradient = partial_gradient(self._learner, batch, frozen)
        self._learner.set_gradient(gradient)
        return {"loss": loss, "frozen": float(sum(frozen))}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dict: the phase follows from the number of steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: the phase follows from the number of steps."""
