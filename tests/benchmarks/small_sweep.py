"""A sweep of 18 cells of a small model on one GPU: `python tests/benchmarks/small_sweep.py`, no network, no weights.

A random model of SmolLM2's shape in float32, with a token per byte, goes through `harness -m`: three defenses, three
attack ratios and two seeds on the synthetic world, 100 steps of alignment (2 epochs of 500 rows) and 300 of
fine-tuning (5 epochs of 600) with batches of 10 rows of 60 to 120 tokens. Prints one JSON object; `seconds` is the wall
time of the whole command. ``--mps`` runs it under NVIDIA's Multi-Process Service, so that kernels of several workers
run at the same time. ``--tiny`` runs two cells of a model of two layers for a few steps, on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from random_models import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from harness.training.budget import Precision

CELLS = ("defense=sft,vaccine,booster", "attack_ratio=p00,p10,p20", "seed=0,1")
FULL = ("align.budget.epochs=2", "finetune.budget.epochs=5")
TINY = (
    "attack_ratio=p10",
    "align.budget.epochs=1",
    "align.rows=20",
    "finetune.rows=20",
    "finetune.budget.epochs=1",
    "evaluation.rows=8",
    "task.test_rows=8",
    "over_refusal.prompts.rows=8",
)


def save_model(folder: Path, shape_name: str) -> None:
    """Write a random model with a token per byte into a folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<pad>"]
    made = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate([*special, *alphabet])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPES[shape_name].config(), dtype=torch.float32).save_pretrained(folder)


def command(folder: Path, workers: int, precision: Precision, *, tiny: bool) -> list[str]:
    """Return the command line of the sweep."""
    model = ("model=local", f"model.source.path={folder}/model", "model.source.dtype=float32")
    encoding = ("model.encoding.template=plain", "model.encoding.newline=false", "model.encoding.max_length=256")
    where = (f"store={folder}/store", f"cluster.workers_per_gpu={workers}", "evaluation.new_tokens=24")
    numbers = (f"++align.budget.precision={precision}", f"++finetune.budget.precision={precision}")
    cells = ("defense=sft,booster", *TINY) if tiny else (*CELLS, *FULL)
    return [sys.executable, "-m", "harness", "-m", "experiment=tiny", *model, *encoding, *where, *numbers, *cells]


@contextmanager
def shared_gpu(folder: Path) -> Iterator[None]:
    """Run a daemon of the Multi-Process Service of one's own while the context lasts; processes started in it join."""
    control = "nvidia-cuda-mps-control"
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    subprocess.run([control, "-d"], check=True)
    try:
        yield
    finally:
        subprocess.run([control], input="quit\n", text=True, check=True)


def passes_of(store: Path) -> list[dict[str, Any]]:
    """Return the different facts about passes that the fine-tunings of a store state."""
    found: list[dict[str, Any]] = []
    for manifest in sorted(store.glob("**/manifest.json")):
        facts = json.loads(manifest.read_text())
        if facts.get("kind") == "finetune" and (passes := facts.get("facts", {}).get("passes")) not in found:
            found.append(passes)
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8, help="workers that share the GPU")
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default=Precision.FLOAT32)
    parser.add_argument("--mps", action="store_true", help="let kernels of several workers run at the same time")
    parser.add_argument("--tiny", action="store_true", help="two cells of a small model on the CPU")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny runs on the CPU")
    # The daemon of the service may still write its log.
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        save_model(folder / "model", "tiny" if asked.tiny else "smollm2")
        line = command(folder, asked.workers, asked.precision, tiny=asked.tiny)
        with shared_gpu(folder) if asked.mps else nullcontext():
            start = time.perf_counter()
            ended = subprocess.run(line, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
        if ended.returncode:
            sys.exit(ended.stdout + ended.stderr)
        found = {
            "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "workers": asked.workers,
            "precision": asked.precision,
            "mps": asked.mps,
            "command": line[2:],
            "seconds": seconds,
            "passes": passes_of(folder / "store"),
            "last": ended.stdout.strip().splitlines()[-12:],
        }
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
