"""One process of a distributed run of every method; writes what each ended with. Started by ``torchrun``."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist
from safetensors.torch import save_file
from test_train_methods import METHODS, build, run, weights_of

from harness.training.processes import rank, world_size


def everything(out: Path) -> None:
    """Train each method, a row at a time; write its weights and history by its place and the rank."""
    for place, name in enumerate(METHODS):
        model = build()
        with TemporaryDirectory() as work:
            report = run(name, Path(work), model=model, micro_batch_size=1)
        stem = out / f"{place}-{rank()}"
        save_file(weights_of(model), f"{stem}.safetensors")
        Path(f"{stem}.json").write_text(json.dumps(list(report.history)))


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
    assert world_size() == 2
    dist.destroy_process_group()
