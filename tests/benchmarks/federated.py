"""How long a federated training takes beside a central one with as many optimizer steps, on the tiny model's shape.

Run ``python tests/benchmarks/federated.py``. Both train 300 steps of ten rows out of 600, from the same weights: one
user in five epochs, or ten clients, three in a round, in twenty rounds of five steps, with checkpoints after each
round. They take turns in one run, and what is read is this process's own time on the processors; the median of the
paired ratios counts. With ``--aggregator NAME`` the server combines by that one."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

import torch
from booster_step import tiny
from omegaconf import OmegaConf

from harness.config.shipped import CONF
from harness.corpora.encode import Encoded
from harness.corpora.shards import Shards
from harness.engine.build import build
from harness.models.adapter import Lora, attach
from harness.protocols import Aggregator
from harness.training.budget import Budget
from harness.training.federated import train_rounds
from harness.training.rounds import Rounds
from harness.training.trainer import train

ROWS, CLIENTS = 600, 10


class Silent:
    def log(self, metrics, *, step):
        pass

    def close(self):
        pass


def rows(vocabulary: int) -> list[Encoded]:
    """Return rows with the length of a note: 20 tokens, one of them supervised."""
    rng = Random(0)
    drawn = [[rng.randrange(1, vocabulary) for _ in range(20)] for _ in range(ROWS)]
    return [Encoded(ids, [-100] * 18 + ids[18:]) for ids in drawn]


def seconds(model, start, run) -> float:
    """Return the processor time of a training from the same weights."""
    with torch.no_grad():
        for parameter, value in zip((p for p in model.parameters() if p.requires_grad), start, strict=True):
            parameter.copy_(value)
    with tempfile.TemporaryDirectory() as work:
        before = time.process_time()
        run(Path(work))
        return time.process_time() - before


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--aggregator", default="mean")
    options = parser.parse_args()
    chosen = OmegaConf.to_container(OmegaConf.load(CONF / "federation/aggregate" / f"{options.aggregator}.yaml"))
    rounds = Rounds(per_round=3, rounds=20, local_steps=5, aggregate=build(Aggregator, chosen))
    model = attach(tiny(), Lora(rank=32, alpha=4, targets=("q_proj", "k_proj", "v_proj")), seed=0)
    start = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    common = {
        "method": None,
        "rows": rows(model.config.vocab_size),
        "budget": Budget(epochs=5, batch_size=10, learning_rate=1e-3),
        "seed": 0,
        "pad_id": 0,
        "tracker": Silent(),
    }
    shards = Shards([row % CLIENTS for row in range(ROWS)], CLIENTS, frozenset())
    pairs = []
    for _ in range(options.pairs + 1):
        central = seconds(model, start, lambda work: train(model, work=work, **common))
        federated = seconds(
            model, start, lambda work: train_rounds(model, work=work, shards=shards, rounds=rounds, **common)
        )
        pairs.append((federated / central, federated, central))
    # The first pair warms up.
    ratios = [pair[0] for pair in pairs[1:]]
    federated, central = (statistics.median(pair[place] for pair in pairs[1:]) for place in (1, 2))
    print(
        f"federated {federated:.2f} s, central {central:.2f} s: {statistics.median(ratios):.2f} x "
        f"(median of {len(ratios)} pairs, {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
