"""How a small model's passes are best run on a GPU: `python tests/benchmarks/small_passes.py`, two minutes, no weights.

A random model of SmolLM2's shape, 10 rows of 100 tokens. Prints one JSON object:

- ``passes``: seconds of a forward and backward pass whose decoder is captured as CUDA graphs, by number format and
  dtype of the base: with the modules as they are, with norms in one kernel each, with rotary embeddings and adapted
  layers in few as well, and with layers compiled first (``first``: how long the two passes before the capture take,
  compiling included). ``difference`` is the relative distance of the gradient from that of the modules as they are.
- ``steps``: whole steps of Booster and Vaccine next to plain eager passes, as in ``gpu.py``, without and with few
  kernels. Vaccine's passes have hooks inside of the decoder and are not captured.

``--tiny`` runs all of it on a CPU in seconds, with a model of two layers, nothing captured and a stand-in for the
compiler.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu import Models, card, distance, measured_step, shown
from plain_steps import booster_gradient, vaccine_gradient
from random_models import SHAPES, Bench, rows_of
from torch import Tensor

from harness.corpora.batches import collate
from harness.defenses.booster import Booster
from harness.defenses.vaccine import Vaccine
from harness.models.captured import captured_decoder
from harness.models.compiled import compiled_layers
from harness.models.cuda_graphs import Recorder
from harness.models.norms import fused_norms
from harness.models.projections import fused_projections
from harness.models.rotary import fused_rotary
from harness.training.budget import Precision
from harness.training.learner import CausalLearner
from harness.training.passes import Passes

FORMATS = (
    (torch.float32, Precision.FLOAT32),
    (torch.float32, Precision.TF32),
    (torch.float32, Precision.BFLOAT16),
    (torch.bfloat16, Precision.BFLOAT16),
)
Switch = Callable[[Any], AbstractContextManager[Any]]


class SmallBench(Bench):
    """A bench with the load of a small model, and with passes whose kernels are few or not."""

    def __init__(self, *, tiny: bool) -> None:
        super().__init__(tiny=tiny)
        self.load = self.load._replace(length=self.load.small_length)
        self.fused = True

    def passes(self, *args: Any, **named: Any) -> Passes:
        """Return how training takes its passes on this device."""
        return replace(super().passes(*args, **named), fused=self.fused)


def variants(bench: Bench) -> dict[str, Sequence[Switch]]:
    """Return what is switched on before the decoder is captured, by name."""
    compiled = partial(
        compiled_layers, backend="inductor" if bench.device == "cuda" else "aot_eager", rows={bench.load.rows}
    )
    return {
        "modules": (),
        "norms": (fused_norms,),
        "all": (fused_norms, fused_rotary, fused_projections),
        "compiled": (compiled,),
    }


def measured_passes(bench: Bench, name: str) -> list[dict[str, Any]]:
    """Measure a pass in every number format and variant."""
    shape, load, device = SHAPES[name], bench.load, torch.device(bench.device)
    batch = collate(rows_of(shape.vocabulary, rows=load.rows, length=load.length, shortest=1.0, seed=5), pad_id=0)
    found = []
    for dtype, precision in FORMATS:
        exact: list[Tensor] = []
        for variant, switches in variants(bench).items():
            model = bench.model(shape, dtype)
            passes = replace(bench.passes(model, load.rows, load.length, precision), captured=False, fused=False)
            learner = CausalLearner(model, precision=precision, passes=passes)
            one = partial(learner.gradient, batch)
            with ExitStack() as stack:
                stack.enter_context(passes.running(model, device))
                for switch in switches:
                    stack.enter_context(switch(model))
                start = time.perf_counter()
                one()
                one()
                bench.wait()
                first = time.perf_counter() - start
                if bench.device == "cuda":
                    stack.enter_context(captured_decoder(model, Recorder(device), {load.rows}))
                    one()
                (seconds,) = bench.medians(one)
                gradient = one()[1]
            exact = exact or gradient
            found.append(
                {
                    "precision": precision.value,
                    "base": str(dtype).removeprefix("torch."),
                    "variant": variant,
                    "seconds": seconds,
                    "first": first,
                    "difference": distance(gradient, exact),
                }
            )
    return found


def measured_steps(bench: SmallBench, name: str) -> list[dict[str, Any]]:
    """Measure steps of both methods, by number format, without and with few kernels."""
    found = []
    for dtype, precision in (FORMATS[0], FORMATS[-1]):
        bench.precision = precision
        for bench.fused in (False, True):
            models = Models(SHAPES[name], *(bench.model(SHAPES[name], dtype) for _ in range(2)))
            for method, reference in ((Booster(), booster_gradient), (Vaccine(), vaccine_gradient)):
                about = {"method": method.name, "precision": precision.value, "fused": bench.fused}
                found.append(about | measured_step(bench, models, method, reference))
    return found


def main(arguments: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny runs on the CPU")
    bench, name = SmallBench(tiny=asked.tiny), "tiny" if asked.tiny else "smollm2"
    found = {
        "card": card(bench.device),
        "passes": shown("passes", measured_passes(bench, name)),
        "steps": shown("steps", measured_steps(bench, name)),
    }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
