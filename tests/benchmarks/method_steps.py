"""How long a step of each training method takes beside the bare forward and backward passes that its equations need.

Run ``python tests/benchmarks/method_steps.py`` (SmolLM2-135M; needs the extra ``smollm2``) or with ``--tiny``, and with
the names of methods to measure some only. The step and its bare passes take turns in one run, and what is read is this
process's own time on the processors, so that a busy machine disturbs little and both alike; the median of the paired
ratios counts. Two thirds of the tokens are prompt, one third is answer.

To measure another method, add a line to ``CASES``: its settings, and how many passes of each kind (``KINDS``) a step
needs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from booster_step import batch, smollm2, tiny
from torch.nn.functional import cross_entropy
from transformers.utils import logging as transformers_logging

from harness.corpora.batches import Pair
from harness.defenses.booster import Booster
from harness.defenses.booster_vaccine import BoosterVaccine
from harness.defenses.ewc import EWC
from harness.defenses.kl import KL
from harness.defenses.ldifs import LDIFS
from harness.defenses.lisa import Lisa
from harness.defenses.panacea import Panacea
from harness.defenses.random_vaccine import RandomVaccine
from harness.defenses.repnoise import RepNoise
from harness.defenses.tar import Tar
from harness.defenses.tvaccine import TVaccine
from harness.defenses.vaccine import Vaccine
from harness.defenses.vlguard import VLGuard
from harness.models.adapter import Lora, attach
from harness.models.decoder import kept_input, kept_outputs, layers
from harness.models.recompute import recomputed
from harness.protocols import Piece
from harness.training.learner import CausalLearner


class Case(NamedTuple):
    """A method, how many passes of each kind a step of it needs, and its state at an ordinary step, by the layers."""

    settings: Any
    bare: dict[str, int]
    state: Callable[[int], dict[str, Any]] | None = None


class Bench:
    """The model and its batches; also gives the method what it draws."""

    def __init__(self, model, *, rows: int, length: int) -> None:
        vocabulary = model.config.vocab_size
        self.learner = CausalLearner(model)
        self.own = batch(vocabulary, rows=rows, length=length, seed=1)
        self.harmful = batch(vocabulary, rows=rows, length=length, seed=2)
        self.refusal = batch(vocabulary, rows=rows, length=length, seed=3)
        answer = 2 * length // 3
        self.refusal["input_ids"][:, :answer] = self.harmful["input_ids"][:, :answer]

    def derive(self, *_names: str) -> int:
        return 0

    def next(self, _role):
        return self.harmful

    def pair(self, _role) -> Pair:
        return Pair(self.harmful, self.refusal)

    def forward(self) -> None:
        with torch.no_grad():
            (piece,) = self.learner.pieces(self.own)
            self.learner.predict(piece)

    def lens(self) -> None:
        """Both passes on the harmful batch, with every layer's state put through the head where there is an answer."""
        model, found = self.learner.module, layers(self.learner.module)
        head, norm = model.get_output_embeddings(), model.get_decoder().norm
        where = self.harmful["labels"][:, 1:] != -100

        def share(piece: Piece) -> tuple[torch.Tensor]:
            with kept_outputs(dict(enumerate(found[:-1]))) as states, kept_input(found[0]) as entered:
                prediction = self.learner.predict(piece)
            logits = [prediction.logits, *(head(norm(h[:, :-1][where])) for h in (*entered, *states.values()))]
            return (torch.stack([cross_entropy(each, prediction.targets) for each in logits]).mean(),)

        self.learner.accumulate(self.learner.pieces(self.harmful), share)

    def recomputing(self) -> None:
        """Both passes on the stage's batch, with the layers that T-Vaccine did not draw computed again."""
        found = layers(self.learner.module)
        kept = drawn(len(found))
        with recomputed(layer for place, layer in enumerate(found) if place not in kept):
            self.learner.gradient(self.own)


KINDS: dict[str, Callable[[Bench], Any]] = {
    "own": lambda bench: bench.learner.gradient(bench.own),
    "harmful": lambda bench: bench.learner.gradient(bench.harmful),
    "forward": Bench.forward,
    "lens": Bench.lens,
    "recomputing": Bench.recomputing,
}
"""Passes: forward and backward on the stage's batch or on a harmful one, forward alone, and the two above."""


def drawn(layers: int) -> list[int]:
    """Return where eight drawn layers lie on average."""
    return sorted({round(place * (layers + 1) / 9) - 1 for place in range(1, 9)} & set(range(layers)))


def between_draws(layers: int) -> dict[str, Any]:
    """Put T-Vaccine where neither a probe nor a draw is due."""
    return {"steps": 1, "probabilities": [1 / layers] * layers, "drawn": drawn(layers)}


CASES: dict[str, Case] = {
    "booster": Case(Booster(), {"own": 1, "harmful": 2}),
    "vaccine": Case(Vaccine(), {"own": 2}),
    "booster_vaccine": Case(BoosterVaccine(), {"own": 2, "harmful": 2}),
    "random_vaccine": Case(RandomVaccine(), {"own": 1}),
    "repnoise": Case(RepNoise(), {"own": 1, "lens": 1}),
    "tvaccine": Case(TVaccine(), {"own": 2}, between_draws),
    "tvaccine_recomputing": Case(TVaccine(), {"recomputing": 2}, between_draws),
    "tar": Case(
        Tar(inner_steps=4, harmful_batch_size=8, pair_batches=1, retain="refusals", alignment_share=0, closing_steps=0),
        {"own": 1, "harmful": 6, "forward": 3},
    ),
    "lisa": Case(Lisa(), {"own": 1}),
    "ewc": Case(EWC(fisher_rows=2, fisher_batch_size=2), {"own": 1}),
    "vlguard_joint": Case(VLGuard(form="joint", safety_batch_size=4, lamb=0.1), {"own": 1, "harmful": 1}),
    "kl": Case(KL(), {"own": 1, "forward": 1}),
    "ldifs": Case(LDIFS(), {"own": 1, "forward": 1}),
    "panacea": Case(Panacea(), {"own": 1, "harmful": 2}),
}
"""T-Vaccine twice: its equations need two passes, its saving of memory needs them with layers computed again."""


def timed(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(name: str, bench: Bench, pairs: int) -> None:
    """Print the medians of a method's step, its bare passes, and the step's ratios to them and to plain training."""
    case = CASES[name]
    step = case.settings.start(bench.learner, bench, 1)

    def one_step() -> None:
        # A gradient that is there already keeps T-Vaccine from taking this for a step on which a probe is due.
        bench.learner.set_gradient([torch.zeros_like(trainable) for trainable in bench.learner.trainables])
        step.backward(bench.own)
        bench.learner.module.zero_grad()

    def bare() -> None:
        for kind, count in case.bare.items():
            for _ in range(count):
                KINDS[kind](bench)

    if case.state:
        step.load_state_dict(case.state(len(layers(bench.learner.module))))
    one_step()
    bare()
    times = [(timed(bare), timed(one_step), timed(partial(KINDS["own"], bench))) for _ in range(pairs)]
    ratios = [mine / passes for passes, mine, _ in times]
    relative = statistics.median(mine / plain for _, mine, plain in times)
    needed, mine = (statistics.median(each[place] for each in times) for place in (0, 1))
    passes = " + ".join(f"{count} {kind}" for kind, count in case.bare.items())
    print(
        f"{name:22} step {mine:7.3f} s, bare {needed:7.3f} s ({passes}), ratio {statistics.median(ratios):.3f} "
        f"(from {min(ratios):.3f} to {max(ratios):.3f}), {relative:.2f} times a plain step",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(CASES)}; all if none is named")
    options.add_argument("--tiny", action="store_true", help="a random small model instead of SmolLM2")
    options.add_argument("--pairs", type=int, default=5, help="how often both are timed")
    options.add_argument("--rows", type=int, default=4, help="rows of each batch")
    options.add_argument("--length", type=int, default=192, help="tokens of each row")
    chosen = options.parse_args()
    unknown = set(chosen.methods) - set(CASES)
    if unknown:
        options.error(f"unknown methods: {', '.join(sorted(unknown))}")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = attach(tiny() if chosen.tiny else smollm2(), Lora(), seed=0).train()
    # A fresh adapter has B = 0, which would leave half of the gradients zero.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    bench = Bench(model, rows=chosen.rows, length=chosen.length)
    print(f"model {'tiny' if chosen.tiny else 'SmolLM2-135M'}, {chosen.rows} rows x {chosen.length} tokens")
    for name in chosen.methods or CASES:
        measure(name, bench, chosen.pairs)


if __name__ == "__main__":
    main()
