"""The extension points of the harness as protocols, one module per kind."""

from typing import TYPE_CHECKING

from harness.protocols.attacks import Attack, AttackContext, Victim
from harness.protocols.learner import BatchProvider, DataRequirement, Learner, Named, Prediction, TrainStep
from harness.protocols.methods import (
    ComparesPasses,
    HasConflicts,
    HasProbes,
    NeedsPlainLora,
    ProducesOutputs,
    RepairMethod,
    TrainMethod,
)
from harness.protocols.piece import Piece
from harness.protocols.shelves import (
    ExampleSource,
    HasMatch,
    Judge,
    ModelSource,
    RefusalJudge,
    RemoteJudge,
    Task,
    TrainedGuard,
)

if TYPE_CHECKING:
    from harness.protocols.learner import Batch, Gradient, Metrics

__all__ = [
    "Attack",
    "AttackContext",
    "Batch",
    "BatchProvider",
    "ComparesPasses",
    "DataRequirement",
    "ExampleSource",
    "Gradient",
    "HasConflicts",
    "HasMatch",
    "HasProbes",
    "Judge",
    "Learner",
    "Metrics",
    "ModelSource",
    "Named",
    "NeedsPlainLora",
    "Piece",
    "Prediction",
    "ProducesOutputs",
    "RefusalJudge",
    "RemoteJudge",
    "RepairMethod",
    "Task",
    "TrainMethod",
    "TrainStep",
    "TrainedGuard",
    "Victim",
]
