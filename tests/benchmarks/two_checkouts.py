"""Two versions of the harness next to each other: `python tests/benchmarks/two_checkouts.py OLD NEW`.

Both are checkouts with a `.venv`. By turns each runs a sweep of three tiny cells (sft, vaccine, booster; all stages
afresh, one thread) and, in a process of its own, one Booster and one Vaccine step of a random model of SmolLM2's
shape on 4 x 96 tokens. Prints CPU seconds and peak memory of every run, and the ratios of the medians, new to old.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SWEEP = ("-m", "experiment=tiny", "defense=sft,vaccine,booster", "attack_ratio=p10", "cluster.workers=1")
THREADS = "cluster.threads=1"


def sweep(checkout: Path) -> None:
    with tempfile.TemporaryDirectory() as store:
        command = [str(checkout / ".venv/bin/harness"), *SWEEP, THREADS, f"store={store}"]
        subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)


def steps(checkout: Path) -> None:
    subprocess.run([str(checkout / ".venv/bin/python"), __file__, "--take-steps"], cwd=checkout, check=True)


def take_steps() -> None:
    """Take the steps with the harness of this interpreter, by what all versions of it have."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.defenses.booster import Booster
    from harness.defenses.vaccine import Vaccine
    from harness.models.adapter import Lora, attach
    from harness.training.learner import CausalLearner

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    config = LlamaConfig(**shape, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True)
    model = attach(LlamaForCausalLM(config).requires_grad_(False), Lora(), seed=0).train()
    ids = torch.randint(1, config.vocab_size, (4, 96))
    labels = ids.clone()
    labels[:, :64] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    class Draws:
        def next(self, _role):
            return batch

    for method in (Booster(), Vaccine()):
        method.start(CausalLearner(model), Draws(), 10).backward(batch)


def measured(part, checkout: Path) -> tuple[float, float]:
    """Return the CPU seconds and the peak MiB of what a part starts, measured in a process of its own."""
    command = [sys.executable, __file__, "--part", part, str(checkout)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak = out.split()
    return float(seconds), float(peak)


PARTS = {"sweep": sweep, "steps": steps}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="the old one and the new one")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--take-steps", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.take_steps:
        take_steps()
        return
    if asked.part:
        PARTS[asked.part](*asked.checkouts)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
        return
    if len(asked.checkouts) != 2:
        parser.error("expected two checkouts")
    for part in [asked.only] if asked.only else PARTS:
        found = [[measured(part, checkout.absolute()) for checkout in asked.checkouts] for _ in range(asked.pairs)]
        for old, new in found:
            print(f"{part}: CPU {old[0]:.1f} s and {new[0]:.1f} s, peak {old[1]:.0f} and {new[1]:.0f} MiB", flush=True)
        for index, name in enumerate(("CPU", "peak memory")):
            old, new = (statistics.median(pair[side][index] for pair in found) for side in (0, 1))
            print(f"{part}: {name} {new / old:.3f} x", flush=True)


if __name__ == "__main__":
    main()
