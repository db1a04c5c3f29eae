"""Exposure: which prompts a model was trained on, found in the lineage of its stage."""

from harness.corpora.examples import Example
from harness.corpora.slices import Slice
from harness.engine.stage import Locate, Stage, lineage
from harness.stages.align import Align
from harness.stages.finetune import Finetune
from harness.stages.poison import Poison, read_mixture
from harness.stages.repair import Repair


def seen_in_training(last: Stage, locate: Locate) -> list[Example]:
    """Return every row that a stage or one of its ancestors was trained on or drew."""
    rows: list[Example] = []
    for stage in lineage((last,)):
        slices: tuple[Slice | None, ...] = ()
        if isinstance(stage, Poison):
            rows += [example for example, _ in read_mixture(locate(stage))]
        elif isinstance(stage, Align | Finetune | Repair):
            slices = (stage.refusal, stage.harmful)
        rows += [example for part in slices if part for example in part.examples()]
    return rows
