"""The extension points of the harness as protocols, one module per kind."""

from typing import TYPE_CHECKING

from harness.protocols.attacks import (
    Attack,
    AttackContext,
    AttackNeeds,
    AttackPlan,
    ChecksPlan,
    SelectsRows,
    SendsAlone,
    Tampering,
    Victim,
    first_of,
)
from harness.protocols.estimators import AsksForGradients, Estimator, Perturbation
from harness.protocols.fusions import Fused, Fusion
from harness.protocols.learner import BatchProvider, DataRequirement, Learner, Named, Prediction, Product, TrainStep
from harness.protocols.methods import (
    ComparesPasses,
    EditsResult,
    HasConflicts,
    HasProbes,
    NeedsPlainLora,
    NeedsSafeAdapter,
    ProducesOutputs,
    RepairMethod,
    TrainMethod,
    UsesAlignment,
)
from harness.protocols.piece import Piece
from harness.protocols.shelves import (
    Benchmark,
    ExampleSource,
    HasMatch,
    Judge,
    MeasuredTask,
    Measurements,
    ModelSource,
    RefusalJudge,
    RemoteJudge,
    Task,
    TrainedGuard,
)

if TYPE_CHECKING:
    from harness.protocols.learner import Batch, Gradient, Metrics

__all__ = [
    "AsksForGradients",
    "Attack",
    "AttackContext",
    "AttackNeeds",
    "AttackPlan",
    "Batch",
    "BatchProvider",
    "Benchmark",
    "ChecksPlan",
    "ComparesPasses",
    "DataRequirement",
    "EditsResult",
    "Estimator",
    "ExampleSource",
    "Fused",
    "Fusion",
    "Gradient",
    "HasConflicts",
    "HasMatch",
    "HasProbes",
    "Judge",
    "Learner",
    "MeasuredTask",
    "Measurements",
    "Metrics",
    "ModelSource",
    "Named",
    "NeedsPlainLora",
    "NeedsSafeAdapter",
    "Perturbation",
    "Piece",
    "Prediction",
    "ProducesOutputs",
    "Product",
    "RefusalJudge",
    "RemoteJudge",
    "RepairMethod",
    "SelectsRows",
    "SendsAlone",
    "Tampering",
    "Task",
    "TrainMethod",
    "TrainStep",
    "TrainedGuard",
    "UsesAlignment",
    "Victim",
    "first_of",
]
