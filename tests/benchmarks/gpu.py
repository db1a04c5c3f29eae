"""What the harness gets out of a GPU: `python tests/benchmarks/gpu.py`, under 4 minutes, no network, no weights.

A random model of a published shape is built on the device, in bfloat16 with a float32 adapter of rank 32 on q/k/v.
Training is measured next to plain eager passes in the authors' order of operations, on a second model with the same
weights, by turns; medians count. Generation is measured with the adapter attached and the end token switched off, so
that every row writes the same number of tokens. Prints one JSON object:

- ``pass``: forward and backward, every row full. FLOPs are 4 x parameters x tokens: the base is frozen, so only
  activations have gradients.
- ``booster_step``, ``vaccine_step``: with clipping and AdamW, on rows of 60 to 100 % of the length. ``ratio`` is ours
  relative to the plain passes; ``difference`` the relative distance of both gradients on equal weights.
- ``answers``: tokens per second by batch size.
- ``small``: a pass of SmolLM2's shape in float32, by rows.
- ``peak``: dense bfloat16 TFLOP/s of the card's data sheet (null where it is not known) and of a large product measured
  here. Memory is what was allocated at most beyond what was allocated before.

``--tiny`` runs all of it on a CPU in seconds, in float32, with a model of two layers.
"""

import argparse
import gc
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import torch
from plain_steps import booster_gradient, loss_of, vaccine_gradient
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from harness.corpora.batches import Pool, RoleBatches, collate
from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.defenses.booster import Booster
from harness.defenses.vaccine import Vaccine
from harness.generation.decoding import Decoding
from harness.generation.transformers import generate
from harness.models.adapter import Lora, attach
from harness.training.budget import Precision
from harness.training.learner import CausalLearner
from harness.training.passes import Passes, passes_on

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


class Shape(NamedTuple):
    """The size of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False

    def config(self) -> LlamaConfig:
        """Return the configuration of a model of this size."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
        )


SHAPES = {
    "llama2_7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "llama3_8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "smollm2": Shape(576, 1536, 30, 9, 3, 49152, tied=True),
    "tiny": Shape(64, 128, 2, 4, 2, 512),
}


class Load(NamedTuple):
    """How much is measured: the batch of a step, the answers, the batches of the small model."""

    rows: int = 10
    length: int = 200
    repeats: int = 5
    answer_batches: Sequence[int] = (1, 64, 256)
    prompt_length: int = 64
    new_tokens: int = 64
    small: str = "smollm2"
    small_rows: Sequence[int] = (10, 80)
    small_length: int = 100
    product: int = 8192


TINY = Load(2, 16, 1, (1, 3), 8, 4, "tiny", (2, 4), 8, 64)


class Models(NamedTuple):
    """Two models of one shape with equal weights: one for the harness, one for plain passes."""

    shape: Shape
    ours: Module
    plain: Module


class Bench:
    """A device, how models on it compute, and a stopwatch that waits for it."""

    def __init__(self, *, tiny: bool) -> None:
        self.device = "cpu" if tiny else "cuda"
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.precision = Precision.FLOAT32 if tiny else Precision.BFLOAT16
        self.load = TINY if tiny else Load()

    def model(self, shape: Shape, dtype: torch.dtype) -> Module:
        """Build a random model with an adapter that changes something; equal shapes give equal weights."""
        torch.manual_seed(0)
        with torch.device(self.device):
            base = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
        model = attach(base.requires_grad_(False), Lora(), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # A fresh adapter has B = 0, which would leave half of the gradients zero.
                if ".lora_B." in name:
                    parameter.normal_(std=0.02)
        return model

    def passes(self, model: Module, rows: int, longest: int, precision: Precision | None = None) -> Passes:
        """Return how training takes its passes on this device."""
        return passes_on(model, self.device, precision=precision or self.precision, longest=longest, rows={rows})

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - start

    def medians(self, *actions: Callable[[], object]) -> list[float]:
        """Return the median seconds of actions that take turns, each warmed up twice."""
        for action in actions:
            action()
            action()
        times = [[self.seconds(action) for action in actions] for _ in range(self.load.repeats)]
        return [statistics.median(each) for each in zip(*times, strict=True)]

    @contextmanager
    def peak(self) -> Iterator[Callable[[], float | None]]:
        """Give what tells how many GiB were allocated at most, beyond what was allocated at the start."""
        if self.device != "cuda":
            yield lambda: None
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)


def rows_of(vocabulary: int, *, rows: int, length: int, shortest: float, seed: int) -> list[Encoded]:
    """Return random rows with lengths spread evenly from a share of the length up to it; a third is answer."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for place in range(rows):
        share = shortest + (1 - shortest) * place / max(rows - 1, 1)
        size = max(round(length * share), 3)
        ids = torch.randint(1, vocabulary, (size,), generator=draw).tolist()
        prompt = 2 * size // 3
        made.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return made


def on_device(rows: Sequence[Encoded], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in collate(rows, pad_id=0).items()}


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

    with bench.peak() as gib, passes.running(models.ours, bench.device):
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


def parameters(model: Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measured_step(
    bench: Bench, models: Models, method: Booster | Vaccine, reference: Callable[..., list[Tensor]]
) -> dict[str, Any]:
    """Measure a whole step of a method next to the same from plain passes."""
    passes = bench.passes(models.ours, bench.load.rows, bench.load.length)
    learner = CausalLearner(models.ours, precision=bench.precision, passes=passes)
    with passes.running(models.ours, bench.device):
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
    draws = RoleBatches(pools, pad_id=0, seed=0)
    step = method.start(learner, draws, 1000)

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


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, ``w0`` to the last, without an end token."""
    words = {f"w{number}": number for number in range(vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0")


def measured_answers(bench: Bench, model: Any, shape: Shape) -> list[dict[str, Any]]:
    """Measure generation by batch size."""
    load = bench.load
    tokenizer = tokenizer_of(shape.vocabulary)
    model.generation_config.eos_token_id = None
    draw = torch.Generator().manual_seed(4)
    longest = max(load.answer_batches)
    sizes = [max(load.prompt_length * (longest + place) // (2 * longest), 1) for place in range(longest)]
    prompts = [
        " ".join(f"w{number}" for number in torch.randint(1, shape.vocabulary, (size,), generator=draw).tolist())
        for size in sizes
    ]
    found = []
    for batch_size in load.answer_batches:

        def answer(texts: Sequence[str] = prompts[-batch_size:], batch_size: int = batch_size) -> None:
            generate(model, tokenizer, texts, new_tokens=load.new_tokens, decoding=Decoding(), batch_size=batch_size)

        with bench.peak() as gib:
            first = bench.seconds(answer)
            seconds = bench.seconds(answer)
            highest = gib()
        found.append(
            {
                "batch": batch_size,
                "new_tokens": load.new_tokens,
                "first_seconds": first,
                "seconds": seconds,
                "tokens_per_second": batch_size * load.new_tokens / seconds,
                "peak_gib": highest,
            }
        )
    return found


def measured_small(bench: Bench) -> list[dict[str, Any]]:
    """Measure passes of a small model in float32, by rows."""
    load, shape = bench.load, SHAPES[bench.load.small]
    model = bench.model(shape, torch.float32)
    found = []
    for rows in load.small_rows:
        made = rows_of(shape.vocabulary, rows=rows, length=load.small_length, shortest=1.0, seed=5)
        passes = bench.passes(model, rows, load.small_length, Precision.FLOAT32)
        learner = CausalLearner(model, passes=passes)
        with passes.running(model, bench.device):
            (seconds,) = bench.medians(partial(learner.gradient, collate(made, pad_id=0)))
        found.append({"rows": rows, "length": load.small_length, "seconds": seconds})
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


def measured(shape_name: str, *, tiny: bool) -> dict[str, Any]:
    """Run everything and return what is printed."""
    start = time.perf_counter()
    bench, shape = Bench(tiny=tiny), SHAPES[shape_name]
    about = card(bench.device)
    product = measured_product(bench)
    peak = peak_of(about["name"])
    models = Models(shape, *(bench.model(shape, bench.dtype) for _ in range(2)))
    one_pass = measured_pass(bench, models)
    one_pass["share_of_peak"] = one_pass["tflops"] / peak if peak else None
    one_pass["share_of_product"] = one_pass["tflops"] / product
    booster = measured_step(bench, models, Booster(), booster_gradient)
    vaccine = measured_step(bench, models, Vaccine(), vaccine_gradient)
    model, size = models.ours, parameters(models.ours)
    del models
    answers = measured_answers(bench, model, shape)
    del model
    return {
        "card": about,
        "versions": versions(),
        "shape": {"name": shape_name, "parameters": size, "dtype": str(bench.dtype).removeprefix("torch.")},
        "peak": {"tflops": peak, "source": "data sheet, dense bfloat16" if peak else None, "product_tflops": product},
        "pass": one_pass,
        "booster_step": booster,
        "vaccine_step": vaccine,
        "answers": answers,
        "small": measured_small(bench),
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
