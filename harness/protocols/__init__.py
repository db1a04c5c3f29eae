"""Every extension point of the harness, one page per kind."""

from typing import TYPE_CHECKING

from harness.protocols.learner import DataRequirement, Draws, Learner, Named, Prediction, TrainStep
from harness.protocols.methods import ComparesPasses, HasConflicts, ProducesOutputs, RepairMethod, TrainMethod
from harness.protocols.piece import Piece
from harness.protocols.shelves import Attack, ExampleSource, Judge, ModelSource, Task

if TYPE_CHECKING:
    from harness.protocols.learner import Batch, Gradient, Metrics

__all__ = [
    "Attack",
    "Batch",
    "ComparesPasses",
    "DataRequirement",
    "Draws",
    "ExampleSource",
    "Gradient",
    "HasConflicts",
    "Judge",
    "Learner",
    "Metrics",
    "ModelSource",
    "Named",
    "Piece",
    "Prediction",
    "ProducesOutputs",
    "RepairMethod",
    "Task",
    "TrainMethod",
    "TrainStep",
]
