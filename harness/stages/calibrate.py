"""Calibrate: what a method at inference learns from a model before it is asked anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.slices import Slice, examples_of
from harness.engine.files import read_json
from harness.engine.seeding import derive
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.protocols import Calibrated, Calibration, ServedModel
from harness.stages.inputs import ModelStage

TENSORS, TEXTS = "calibration.safetensors", "calibration.json"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrate(Stage):
    """What a method at inference learned.

    The artifact is ``calibration.safetensors`` and ``calibration.json``, tensors and texts by name. The facts are those
    of the method.

    Attributes:
        model: the model that it reads: the aligned one, or the one that is served.
        method: the settings of the calibration.
        examples: what it reads, one slice per role.
        encoding: how the model is asked.
        seed: the root seed.
    """

    name: ClassVar[str] = "calibrate"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    model: ModelStage
    method: Calibration
    examples: tuple[Slice, ...]
    encoding: Encoding
    seed: int

    def preflight(self) -> list[Problem]:
        """Check the sources of the examples, and what else the method needs."""
        paired = self._paired()
        read = [problem for part in self.examples for problem in part.preflight(paired=part.role in paired)]
        return [*read, *(Problem.of(stated).under("serve.calibration") for stated in self.method.preflight())]

    def run(self, ctx: StageContext) -> None:
        """Calibrate the method and store what it found."""
        from safetensors.torch import save_file

        from harness.models.loading import loaded_model

        paired = self._paired()
        with loaded_model(self.model.weights(ctx.input), ctx.memory, ctx.device) as loaded:
            found = self.method.calibrate(
                ServedModel(loaded.model, loaded.tokenizer, self.encoding),
                {part.role: part.examples() for part in self.examples},
                {part.role: part.refusals() for part in self.examples if part.role in paired},
                seed=derive(self.seed, self.name),
                facts=ctx.facts,
            )
        save_file({name: tensor.cpu().contiguous() for name, tensor in found.tensors.items()}, ctx.out / TENSORS)
        texts = {name: list(each) for name, each in found.texts.items()}
        (ctx.out / TEXTS).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")

    def calibration(self, locate: Locate) -> Calibrated:
        """Return what was found."""
        from safetensors.torch import load_file

        folder = locate(self)
        return Calibrated(
            load_file(folder / TENSORS), read_json(folder / TEXTS), derive(self.seed, self.name, "answers")
        )

    def examples_seen(self, locate: Locate) -> Sequence[Example]:  # noqa: ARG002
        """Return the examples that the method read, so that evaluation prompts among them are counted."""
        return examples_of(*self.examples)

    def _paired(self) -> set[str]:
        return {need.role for need in self.method.needs if need.paired}
