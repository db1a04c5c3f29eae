"""One process of a distributed run: trains every golden method and writes its weights. Started by ``torchrun``."""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from golden_runs import BUDGET, METHODS, Recorder, build, golden, rows_of, run, trainables
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from harness.corpora.batches import Pool
from harness.corpora.record import Role
from harness.errors import Stopped
from harness.training.processes import rank, world_size
from harness.training.trainer import train


def uneven(model, work):
    """Train on 9 rows in batches of 4 and micro-batches of 2: one row is left for two processes."""
    _, tensors = golden("booster")
    return train(
        model,
        method=METHODS["booster_vaccine"],
        rows=rows_of(tensors, "alignment", 3)[:9],
        pools={Role.HARMFUL: Pool(rows_of(tensors, "harmful", 4), 5)},
        budget=replace(BUDGET, epochs=2, micro_batch_size=2 // world_size(), max_grad_norm=0.5),
        seed=0,
        pad_id=0,
        work=work,
        tracker=Recorder(),
        checkpoint_every_steps=2,
    )


def stopped(name, model, work):
    """Train, stop at the first opportunity, and go on with another model."""
    try:
        run(name, work, stop=lambda: True)
    except Stopped:
        return run(name, work, model=model)
    raise AssertionError("it did not stop")


def sharded(name, model, work):
    """Train with a sharded base; append what part of the base each process held."""
    report = run(name, work, model=model, sharded=True)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    held = sum(part.to_local().numel() if isinstance(part, DTensor) else part.numel() for part in frozen)
    return replace(report, history=[*report.history, {"held": held / sum(part.numel() for part in frozen)}])


def everything(out: Path) -> None:
    """Run all methods; write the weights and the history of each, by name, processes and rank."""
    runs = {name: partial(run, name) for name in METHODS} | {"uneven": uneven}
    runs |= {f"stopped-{name}": partial(stopped, name) for name in ("sft", "booster")}
    if "WORLD_SIZE" in os.environ:
        runs |= {f"sharded-{name}": partial(sharded, name) for name in METHODS}
    for name, train_once in runs.items():
        model = build()
        report = train_once(model=model, work=out / f"work-{name}-{world_size()}")
        stem = f"{name}-{world_size()}-{rank()}"
        save_file(trainables(model), out / f"{stem}.safetensors")
        (out / f"{stem}.json").write_text(json.dumps(report.history))


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
    assert world_size() == 2
    dist.destroy_process_group()
