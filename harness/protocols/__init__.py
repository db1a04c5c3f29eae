"""Every extension point of the harness, one page per kind."""

from typing import TYPE_CHECKING

from harness.protocols.learner import Draws, Learner, Named, Need, Piece, Prediction, TrainStep
from harness.protocols.methods import ComparesPasses, HandsOver, Particular, RepairMethod, TrainMethod
from harness.protocols.shelves import Attack, ExampleSource, Judge, ModelSource, Task

if TYPE_CHECKING:
    from harness.protocols.learner import Batch, Gradient, Metrics

__all__ = [
    "Attack",
    "Batch",
    "ComparesPasses",
    "Draws",
    "ExampleSource",
    "Gradient",
    "HandsOver",
    "Judge",
    "Learner",
    "Metrics",
    "ModelSource",
    "Named",
    "Need",
    "Particular",
    "Piece",
    "Prediction",
    "RepairMethod",
    "Task",
    "TrainMethod",
    "TrainStep",
]
