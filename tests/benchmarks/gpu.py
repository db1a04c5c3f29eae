"""What the harness gets out of a GPU: `python tests/benchmarks/gpu.py`, under 4 minutes, no network, no weights.

A random model of a published shape is built on the device, in bfloat16 with a float32 adapter of rank 32 on q/k/v.
Training is measured next to plain eager passes in the authors' order of operations, on a second model with the same
weights, by turns; medians count. Generation is measured with the adapter attached and the end token switched off, so
that every row writes the same number of tokens. Prints one JSON object:

- ``pass``: forward and backward, every row full. FLOPs are 4 x parameters x tokens: the base is frozen, so only
  activations have gradients.
- ``booster_step``, ``vaccine_step``: with clipping and AdamW, on rows of 60 to 100 % of the length. ``ratio`` is ours
  relative to the plain passes; ``difference`` the relative distance of both gradients on equal weights.
- ``rounding``: how far the gradients of these steps are from those of float32, ours and the plain ones, on the first
  layers of the shape. Booster's is a small difference of two gradients, so bfloat16 moves it much.
- ``answers``: tokens per second by path and batch size: of the whole call, with prompts and the recording of graphs,
  and of decoding alone (from the difference to a call with an eighth of the tokens). ``same_as_plain`` is the share of
  prompts that both paths answer alike. The last is a whole stage, 1,000 prompts x 512 tokens in batches of the
  harness's choice.
- ``small``: a pass of SmolLM2's shape in float32 and in TF32, by rows, and the same through plain eager passes.
- ``peak``: dense bfloat16 TFLOP/s of the card's data sheet (null where it is not known) and of a large product measured
  here. Memory is what was allocated at most beyond what was allocated before.

``--tiny`` runs all of it on a CPU in seconds, in float32, with a model of two layers.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import product
from typing import Any, NamedTuple

import torch
from plain_steps import booster_gradient, loss_of, vaccine_gradient
from random_models import SHAPES, Bench, Shape, on_device, parameters, rows_of, tokenizer_of
from torch import Tensor
from torch.nn import Module
from transformers.utils import logging as transformers_logging

from harness.corpora.batches import Pool, RoleBatches, collate
from harness.corpora.examples import Role
from harness.defenses.booster import Booster
from harness.defenses.vaccine import Vaccine
from harness.generation.answers import Path
from harness.generation.decoding import Decoding
from harness.generation.transformers import answer
from harness.training.budget import Precision
from harness.training.learner import CausalLearner

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100 80GB HBM3": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 149.7,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bfloat16 TFLOP/s of data sheets, by a part of the device's name; the first that fits counts."""


class Models(NamedTuple):
    """Two models of one shape with equal weights: one for the harness, one for plain passes."""

    shape: Shape
    ours: Module
    plain: Module


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return ``||ours - theirs|| / ||theirs||`` over all tensors together."""
    apart = torch.nn.utils.get_total_norm([one - other for one, other in zip(ours, theirs, strict=True)])
    return float(apart / torch.nn.utils.get_total_norm(theirs))


def trainables(model: Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def measured_pass(bench: Bench, models: Models) -> dict[str, Any]:
    """Measure one forward and backward pass of the learner, and of the library with its own loss."""
    load = bench.load
    rows = rows_of(models.shape.vocabulary, rows=load.rows, length=load.length, shortest=1.0, seed=1)
    batch, own = on_device(rows, bench.device), collate(rows, pad_id=0)
    passes = bench.passes(models.ours, load.rows, load.length)
    learner = CausalLearner(models.ours, precision=bench.precision, passes=passes)

    def eager() -> None:
        models.plain.zero_grad()
        loss_of(models.plain, batch, bench.precision).backward()

    with bench.peak() as gib, passes.running(models.ours, torch.device(bench.device)):
        ours, theirs = bench.medians(lambda: learner.gradient(own), eager)
        highest = gib()
    flops = 4 * parameters(models.ours) * load.rows * load.length
    return {
        "rows": load.rows,
        "length": load.length,
        "seconds": ours,
        "plain_seconds": theirs,
        "ratio": ours / theirs,
        "tflops": flops / ours / 1e12,
        "peak_gib": highest,
    }


def measured_step(
    bench: Bench, models: Models, method: Booster | Vaccine, reference: Callable[..., list[Tensor]]
) -> dict[str, Any]:
    """Measure a whole step of a method next to the same from plain passes."""
    passes = bench.passes(models.ours, bench.load.rows, bench.load.length)
    learner = CausalLearner(models.ours, precision=bench.precision, passes=passes)
    with passes.running(models.ours, torch.device(bench.device)):
        return compared_step(bench, models, method, reference, learner)


def compared_step(
    bench: Bench,
    models: Models,
    method: Booster | Vaccine,
    reference: Callable[..., list[Tensor]],
    learner: CausalLearner,
) -> dict[str, Any]:
    """Measure a step of a learner and of plain passes by turns."""
    load, plain = bench.load, models.plain
    made = [
        rows_of(models.shape.vocabulary, rows=load.rows, length=load.length, shortest=0.6, seed=seed) for seed in (2, 3)
    ]
    own, harmful = (on_device(rows, bench.device) for rows in made)
    batch = collate(made[0], pad_id=0)
    pools = {Role.HARMFUL: Pool(made[1], load.rows)}
    batches = RoleBatches(pools, pad_id=0, seed=0)
    step = method.start(learner, batches, 1000)

    def theirs() -> list[Tensor]:
        return reference(method, plain, own, harmful, bench.precision)

    step.backward(batch)
    apart = distance([weight.grad for weight in learner.trainables], theirs())
    optimizers = [torch.optim.AdamW(weights, lr=1e-5) for weights in (learner.trainables, trainables(plain))]

    def finish(weights: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def our_step() -> None:
        step.backward(batch)
        finish(learner.trainables, optimizers[0])

    def their_step() -> None:
        for weight, part in zip(trainables(plain), theirs(), strict=True):
            weight.grad = part
        finish(trainables(plain), optimizers[1])

    with bench.peak() as gib:
        our_step()
        highest = gib()
    with bench.peak() as gib:
        their_step()
        theirs_highest = gib()
    seconds, plain_seconds = bench.medians(our_step, their_step)
    return {
        "seconds": seconds,
        "plain_seconds": plain_seconds,
        "ratio": seconds / plain_seconds,
        "difference": apart,
        "padding": 1 - float(own["attention_mask"].float().mean()),
        "peak_gib": highest,
        "plain_peak_gib": theirs_highest,
    }


def measured_answers(bench: Bench, model: Any, shape: Shape) -> list[dict[str, Any]]:
    """Measure generation by path and batch size; the last batch size is left to the harness."""
    load = bench.load
    tokenizer = tokenizer_of(shape.vocabulary)
    model.generation_config.eos_token_id = None
    draw = torch.Generator().manual_seed(4)
    sizes = [max(load.prompt_length * (load.prompts + place) // (2 * load.prompts), 1) for place in range(load.prompts)]
    prompts = [
        " ".join(f"w{number}" for number in torch.randint(1, shape.vocabulary, (size,), generator=draw).tolist())
        for size in sizes
    ]
    found = []
    for batch in load.answer_batches:
        texts: dict[Path, list[str]] = {}
        for path in (Path.PLAIN, Path.SLOTS):
            one = _answered(bench, model, tokenizer, prompts[-batch:], batch=batch, path=path, most=load.new_tokens)
            texts[path] = one.pop("texts")
            found.append(one)
        same = [left == right for left, right in zip(*texts.values(), strict=True)]
        found[-1]["same_as_plain"] = sum(same) / len(same)
    stage = _answered(bench, model, tokenizer, prompts, batch=None, path=Path.SLOTS, most=load.stage_tokens)
    del stage["texts"]
    return [*found, stage]


def _answered(
    bench: Bench, model: Any, tokenizer: Any, prompts: Sequence[str], *, batch: int | None, path: Path, most: int
) -> dict[str, Any]:
    answers = None

    def write(new_tokens: int) -> None:
        nonlocal answers
        answers = answer(
            model, tokenizer, prompts, new_tokens=new_tokens, decoding=Decoding(), batch_size=batch, path=path
        )

    few = max(most // 8, 1)
    write(1)
    short = bench.seconds(lambda: write(few))
    with bench.peak() as gib:
        seconds = bench.seconds(lambda: write(most))
        highest = gib()
    assert answers is not None
    return {
        "asked": {"batch": batch, "path": path.value, "prompts": len(prompts), "new_tokens": most},
        **answers.facts,
        "seconds": seconds,
        "tokens_per_second": len(prompts) * most / seconds,
        "decoding_tokens_per_second": len(prompts) * (most - few) / (seconds - short) if seconds > short else None,
        "peak_gib": highest,
        "texts": answers.texts,
    }


def measured_small(bench: Bench) -> list[dict[str, Any]]:
    """Measure passes of a small model by rows and number format; its weights are float32."""
    load, shape = bench.load, SHAPES[bench.load.small]
    model = bench.model(shape, torch.float32)
    found = []
    for rows, precision in product(load.small_rows, Precision):
        made = rows_of(shape.vocabulary, rows=rows, length=load.small_length, shortest=1.0, seed=5)
        batch, own = on_device(made, bench.device), collate(made, pad_id=0)
        passes = bench.passes(model, rows, load.small_length, precision)
        learner = CausalLearner(model, precision=precision, passes=passes)

        def eager(batch: Mapping[str, Tensor] = batch) -> None:
            model.zero_grad()
            loss_of(model, batch, Precision.FLOAT32).backward()

        def ours(learner: CausalLearner = learner, own: Mapping[str, Tensor] = own) -> None:
            learner.gradient(own)

        with passes.running(model, torch.device(bench.device)) as trouble:
            (seconds,) = bench.medians(ours)
            facts = passes.facts(trouble())
        # TF32 lasts as long as the passes do, so the plain ones compute in float32.
        (plain_seconds,) = bench.medians(eager)
        found.append(
            {
                "rows": rows,
                "length": load.small_length,
                "precision": precision.value,
                "captured": facts.get("captured", False),
                "seconds": seconds,
                "plain_seconds": plain_seconds,
            }
        )
    return found


def measured_rounding(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Measure how far the gradients of both methods are from those of float32, on the first layers of a shape."""
    shape = shape._replace(layers=min(shape.layers, bench.load.rounding_layers))
    load = bench.load
    models = [bench.model(shape, dtype) for dtype in (bench.dtype, bench.dtype, torch.float32)]
    ours, plain, exact = models
    with torch.no_grad():
        for weight, rounded in zip(exact.parameters(), plain.parameters(), strict=True):
            weight.copy_(rounded)
    made = [rows_of(shape.vocabulary, rows=load.rows, length=load.length, shortest=0.6, seed=seed) for seed in (2, 3)]
    own, harmful = (on_device(rows, bench.device) for rows in made)
    passes = bench.passes(ours, load.rows, load.length)
    learner = CausalLearner(ours, precision=bench.precision, passes=passes)
    found: dict[str, Any] = {"layers": shape.layers}
    for name, method, reference in (("booster", Booster(), booster_gradient), ("vaccine", Vaccine(), vaccine_gradient)):
        batches = RoleBatches({Role.HARMFUL: Pool(made[1], load.rows)}, pad_id=0, seed=0)
        with passes.running(ours, torch.device(bench.device)):
            method.start(learner, batches, 1000).backward(collate(made[0], pad_id=0))
        truth = reference(method, exact, own, harmful, Precision.FLOAT32)
        found[name] = {
            "ours": distance([weight.grad for weight in learner.trainables], truth),
            "plain": distance(reference(method, plain, own, harmful, bench.precision), truth),
        }
    return found


def measured_product(bench: Bench) -> float:
    """Return the TFLOP/s of one large product of matrices."""
    size = bench.load.product
    left = torch.randn(size, size, device=bench.device, dtype=bench.dtype)

    def ten() -> None:
        for _ in range(10):
            left @ left

    (seconds,) = bench.medians(ten)
    return 10 * 2 * size**3 / seconds / 1e12


def card(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"name": "cpu", "memory_gib": None, "capability": None}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
    }


def peak_of(name: str) -> float | None:
    """Return the dense bfloat16 TFLOP/s of a card; None if it is not known, or only a part of a card."""
    if "MIG" in name:
        return None
    return next((peak for part, peak in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name)), None)


def versions() -> dict[str, str | None]:
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "peft", "harness")}
    return {"python": platform.python_version(), **packages, "cuda": torch.version.cuda}


def shown(name: str, found: Any) -> Any:
    """Print a part as soon as it is measured, to standard error, and return it."""
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def measured(shape_name: str, *, tiny: bool) -> dict[str, Any]:
    """Run everything and return what is printed."""
    start = time.perf_counter()
    bench, shape = Bench(tiny=tiny), SHAPES[shape_name]
    about, releases = card(bench.device), versions()
    peak_product = measured_product(bench)
    peak = peak_of(about["name"])
    models = Models(shape, *(bench.model(shape, bench.dtype) for _ in range(2)))
    one_pass = shown("pass", measured_pass(bench, models))
    one_pass["share_of_peak"] = one_pass["tflops"] / peak if peak else None
    one_pass["share_of_product"] = one_pass["tflops"] / peak_product
    booster = shown("booster step", measured_step(bench, models, Booster(), booster_gradient))
    vaccine = shown("vaccine step", measured_step(bench, models, Vaccine(), vaccine_gradient))
    model, size = models.ours, parameters(models.ours)
    del models
    rounding = shown("rounding", measured_rounding(bench, shape))
    answers = shown("answers", measured_answers(bench, model, shape))
    del model
    return {
        "card": about,
        "versions": releases,
        "shape": {"name": shape_name, "parameters": size, "dtype": str(bench.dtype).removeprefix("torch.")},
        "peak": {
            "tflops": peak,
            "source": "data sheet, dense bfloat16" if peak else None,
            "product_tflops": peak_product,
        },
        "pass": one_pass,
        "booster_step": booster,
        "vaccine_step": vaccine,
        "rounding": rounding,
        "answers": answers,
        "small": shown("small", measured_small(bench)),
        "seconds": time.perf_counter() - start,
    }


def main(arguments: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--shape", choices=SHAPES, default="llama2_7b")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny runs on the CPU")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    found = measured("tiny" if asked.tiny else asked.shape, tiny=asked.tiny)
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
