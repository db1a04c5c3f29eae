"""One process of a distributed run: trains every golden method and writes its weights.

Two are forked by this script.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked_ranks import fork
from golden_runs import BUDGET, METHODS, Recorder, build, golden, rows_of, run, trainables
from peft import PeftModel
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from harness.aggregators.multi_krum import MultiKrum
from harness.corpora.batches import Pool
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.corpora.shards import Shards
from harness.defenses.lisa import Lisa
from harness.defenses.random_vaccine import RandomVaccine
from harness.defenses.repnoise import RepNoise
from harness.defenses.tar import Tar
from harness.defenses.tvaccine import TVaccine
from harness.errors import Stopped
from harness.models.adapter import Lora, attach, detach
from harness.models.trained_weights import TrainedWeights, unfreeze
from harness.training.distributed import rank, whole, world_size
from harness.training.federated import train_rounds
from harness.training.rounds import Rounds
from harness.training.trainer import train


def model_for(name):
    """Return the golden model; for the runs of these names with a DoRA adapter, or without any."""
    model = build()
    if not name.endswith(("dora", "full")):
        return model
    detach(model)
    if name.endswith("full"):
        unfreeze(model.get_base_model(), TrainedWeights())
        return model.get_base_model()
    lora = Lora(rank=4, targets="all-linear", scaling="rslora", variant="dora")
    model = attach(model.get_base_model(), lora, seed=0)
    # It has left zero, as the golden adapters have: there some gradients are little more than rounding, and Adam scales
    # them up.
    draw = torch.Generator().manual_seed(0)
    for path, weight in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(weight, std=0.02, generator=draw)
    return model


def uneven(model, work):
    """Train on 9 rows in batches of 4 and in pieces: one row is left for two processes."""
    _, tensors = golden("booster")
    return train(
        model,
        method=METHODS["booster_vaccine"],
        rows=rows_of(tensors, "alignment", 3)[:9],
        pools={Role.HARMFUL: Pool(rows_of(tensors, "harmful", 4), 5)},
        budget=replace(BUDGET, epochs=2, max_grad_norm=0.5),
        micro_batch_size=2 // world_size(),
        seed=0,
        pad_id=0,
        work=work,
        tracker=Recorder(),
        checkpoint_every_steps=2,
    )


def stopped(name, model, work, **options):
    """Train, stop at the first opportunity, and go on with another model."""
    try:
        trained(name, model_for(name), work, stop=lambda: True, **options)
    except Stopped:
        return trained(name, model, work, **options)
    raise AssertionError("it did not stop")


def lisa(model, work, **options):
    """Train in turns: user batches wait, and each process has its own share of them."""
    _, tensors = golden("booster")
    return train(
        model,
        method=Lisa(alignment_steps=2, user_steps=2, safety_batch_size=5),
        rows=rows_of(tensors, "alignment", 4),
        pools={Role.REFUSAL: Pool(rows_of(tensors, "harmful", 4), 5)},
        budget=replace(BUDGET, epochs=2),
        micro_batch_size=2 // world_size(),
        seed=0,
        pad_id=0,
        work=work,
        tracker=Recorder(),
        **options,
    )


def sharded(name, model, work):
    """Train with a sharded base, or sharded weights; append what part of it each process held."""
    report = trained(name, model, work, sharded=True)
    adapted = isinstance(model, PeftModel)
    shards = [parameter for parameter in model.parameters() if not (adapted and parameter.requires_grad)]
    held = sum(part.to_local().numel() if isinstance(part, DTensor) else part.numel() for part in shards)
    return replace(report, history=[*report.history, {"held": held / sum(part.numel() for part in shards)}])


FURTHER: dict[str, Any] = {
    "random_vaccine": RandomVaccine(rho=2),
    "repnoise": RepNoise(alpha=1, beta=2, harmful_batch_size=5),
    "repnoise_random": RepNoise(alpha=1, beta=2, pairing="random", harmful_batch_size=2),
    "tvaccine": TVaccine(rho=2, layers=1, draw_every=2, probe_every=3, probe_batch_size=2),
    "tar": Tar(
        inner_steps=2,
        evaluate_every=1,
        learning_rates=(1e-3, 1e-2),
        beta=1,
        harmful_batch_size=3,
        retain="refusals",
        closing_steps=1,
    ),
}
"""Methods that there is no golden file for: trained on uneven shares, in pieces."""


def further(name, model, work):
    """Train on 9 rows in batches of 4 and in pieces: one row is left for two processes."""
    _, tensors = golden("booster")
    rows, harmful = rows_of(tensors, "alignment", 3)[:9], rows_of(tensors, "harmful", 4)
    # A partner has the prompt of its row, and an answer of its own: of another length, and with some tokens in common.
    answers = [
        [id for id, label in zip(row.input_ids, row.labels, strict=True) if label != -100]
        for row in (*rows, *rows, *rows)
    ]
    prompts = [[id for id, label in zip(row.input_ids, row.labels, strict=True) if label == -100] for row in harmful]
    partners = [Encoded(p + a, [-100] * len(p) + a) for p, a in zip(prompts, answers, strict=False)]
    (need,) = FURTHER[name].needs or (None,)
    return train(
        model,
        method=FURTHER[name],
        rows=rows,
        pools={Role.HARMFUL: Pool(harmful, need.batch_size, partners, need.disjoint_batches)} if need else {},
        budget=replace(BUDGET, epochs=2, max_grad_norm=0.5),
        micro_batch_size=2 // world_size(),
        seed=0,
        pad_id=0,
        work=work,
        tracker=Recorder(),
        checkpoint_every_steps=2,
    )


def federated(model, work, **options):
    """Train in rounds of three of four clients, with rows that two processes do not share evenly."""
    _, tensors = golden("booster")
    return train_rounds(
        model,
        method=METHODS["booster"],
        rows=rows_of(tensors, "alignment", 3)[:10],
        shards=Shards([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], 4, frozenset({1})),
        rounds=Rounds(per_round=3, rounds=3, local_steps=2, aggregate=MultiKrum(), optimizer="kept"),
        pools={Role.HARMFUL: Pool(rows_of(tensors, "harmful", 4), 5)},
        budget=replace(BUDGET, max_grad_norm=0.5, batch_size=3),
        micro_batch_size=1,
        seed=0,
        pad_id=0,
        work=work,
        tracker=Recorder(),
        **options,
    )


def trained(name, model, work, **options):
    """Train by the name of a method."""
    if name == "federated":
        return federated(model, work, **options)
    if name == "uneven":
        return uneven(model, work)
    if name == "lisa":
        return lisa(model, work, **options)
    if name in FURTHER:
        return further(name, model, work)
    return run("booster" if name in ("dora", "full") else name, work, model=model, **options)


NAMES = (*METHODS, "dora", "full", "uneven", "lisa", "federated", *FURTHER)
STOPPED = ("sft", "booster", "lisa", "dora", "full", "federated")
SHARDED = (*METHODS, "dora", "federated")
SHARDED_WEIGHTS = "full"


def everything(out: Path, names: Sequence[str]) -> None:
    """Run methods in all ways; write the weights and the history of each run, by name, processes and rank."""
    runs = {name: partial(trained, name) for name in names}
    runs |= {f"stopped-{name}": partial(stopped, name) for name in names if name in STOPPED}
    if "WORLD_SIZE" in os.environ:
        runs |= {f"sharded-{name}": partial(sharded, name) for name in names if name in (*SHARDED, SHARDED_WEIGHTS)}
        if SHARDED_WEIGHTS in names:
            runs["stopped-sharded-full"] = partial(stopped, SHARDED_WEIGHTS, sharded=True)
    # Not `world_size()`, which is 1 until the first run has made the process group.
    processes = os.environ.get("WORLD_SIZE", "1")
    for name, train_once in runs.items():
        model = model_for(name)
        report = train_once(model=model, work=out / f"work-{name}-{processes}")
        stem = f"{name}-{world_size()}-{rank()}"
        save_file({key: whole(weight) for key, weight in trainables(model).items()}, out / f"{stem}.safetensors")
        (out / f"{stem}.json").write_text(json.dumps(report.history))


def together(out: Path, names: Sequence[str]) -> None:
    """Be one of the two processes."""
    everything(out, names)
    assert world_size() == 2
    dist.destroy_process_group()


if __name__ == "__main__":
    fork(together, (Path(sys.argv[1]), sys.argv[2:]))
