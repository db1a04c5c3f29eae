"""One process of a distributed run of every method; writes what each ended with. Started by ``torchrun``."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist
from safetensors.torch import save_file
from test_train_methods import BUDGET, METHODS, build, run, weights_of

from harness.training.processes import rank, world_size


def everything(out: Path) -> None:
    """Train each method; write its weights and history by its place, the number of processes and the rank."""
    # The size of a micro-batch counts for each process: this keeps the micro-batches of all together the same. The
    # group of processes is only joined by the first training.
    budget = replace(BUDGET, micro_batch_size=2 // int(os.environ.get("WORLD_SIZE", "1")))
    for place, name in enumerate(METHODS):
        model = build()
        with TemporaryDirectory() as work:
            report = run(name, Path(work), model=model, budget=budget)
        stem = out / f"{place}-{world_size()}-{rank()}"
        save_file(weights_of(model), f"{stem}.safetensors")
        Path(f"{stem}.json").write_text(json.dumps(list(report.history)))


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
    assert world_size() == 2
    dist.destroy_process_group()
