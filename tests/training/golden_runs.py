"""Runs of the product on the golden model and batches."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora import batches
from harness.corpora.batches import Pool
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.booster import Booster
from harness.defenses.booster_vaccine import BoosterVaccine
from harness.defenses.ldifs import LDIFS
from harness.defenses.lisa import Lisa
from harness.defenses.repnoise import RepNoise
from harness.defenses.vaccine import Vaccine
from harness.defenses.vlguard import VLGuard
from harness.training import order
from harness.training.budget import Budget
from harness.training.trainer import TrainReport, train

FOLDER = Path(__file__).parents[1] / "golden"
METHODS: dict[str, Any] = {
    "sft": None,
    "booster": Booster(lamb=5, alpha=0.1, harmful_batch_size=5),
    "vaccine": Vaccine(rho=2),
    "booster_vaccine": BoosterVaccine(lamb=5, alpha=0.1, rho=2, harmful_batch_size=5),
}
FINETUNING: dict[str, Any] = {
    "lisa": Lisa(rho=1, alignment_steps=2, user_steps=3, budget="published", delay=0.1, safety_batch_size=5),
    "ldifs": LDIFS(rho=1e-4, distance="gated_sum"),
    "vlguard": VLGuard(form="joint", lamb=0.7, safety_batch_size=5),
}
"""Methods of the finetune slot: their own batches are the golden `alignment.*`, their refusals the `harmful.*`."""
ALIGNMENT: dict[str, Any] = {
    "repnoise": RepNoise(alpha=0.02, beta=0.1, pairing="random", losses="published", harmful_batch_size=5),
}
STEPS = {"lisa": 8}
"""Recorded steps of a method, if they are not four."""
BUDGET = Budget(epochs=1, batch_size=4, learning_rate=5e-4, weight_decay=0.1, max_grad_norm=None)
SEED = 7


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, metrics, *, step):
        self.rows.append({"step": step, **metrics})

    def close(self):
        pass


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what was recorded of a method; model, initial adapter and batches are those of `sft` if it has none."""
    with safe_open(FOLDER / f"{name}-7.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["meta"])
    shared = {} if name == "sft" else golden("sft")[1]
    return meta, {key: shared[key] for key in shared if not key.startswith(("grad.", "param."))} | tensors


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def build(name: str = "sft"):
    """Return the golden model with its adapter at step 0."""
    meta, tensors = golden(name)
    base = LlamaForCausalLM(LlamaConfig(**meta["config"], attn_implementation="eager"))
    base.load_state_dict(part(tensors, "base."))
    model = get_peft_model(base, LoraConfig(lora_dropout=0.0, **meta["lora"]))
    missing = set(trainables(model)) ^ set(part(tensors, "init."))
    assert not missing
    model.load_state_dict(part(tensors, "init."), strict=False)
    return model


def trainables(model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def rows_of(tensors: dict[str, Tensor], role: str, count: int) -> list[Encoded]:
    """Return the rows of the golden batches, unpadded, batch after batch."""
    rows = []
    for place in range(count):
        batch = part(tensors, f"{role}.{place}.")
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            rows.append(Encoded(ids[:length].tolist(), labels[:length].tolist()))
    return rows


def in_order(rows: list[Encoded], visited: list[int]) -> list[Encoded]:
    """Return the rows so arranged that a permutation visits them in the given order."""
    arranged = list(rows)
    for row, place in zip(rows, visited, strict=True):
        arranged[place] = row
    return arranged


def run(
    name: str, work: Path, *, model=None, budget: Budget = BUDGET, steps: int | None = None, **options
) -> TrainReport:
    """Train the golden model on the golden batches, in the golden order, for one epoch."""
    _, tensors = golden(name)
    count = steps or STEPS.get(name, 4)
    rows = rows_of(tensors, "alignment", count)
    role = Role.REFUSAL if name in FINETUNING else Role.HARMFUL
    second = rows_of(tensors, "harmful", count)
    options.setdefault("tracker", Recorder())
    return train(
        model if model is not None else build(name),
        method=(METHODS | FINETUNING | ALIGNMENT)[name],
        rows=in_order(rows, order.permutation(SEED, 0, len(rows))),
        pools={role: Pool(in_order(second, batches.permutation(SEED, role, 0, len(second))), 5)},
        budget=replace(budget, batch_size=len(tensors["alignment.0.input_ids"])),
        seed=SEED,
        pad_id=0,
        work=work,
        **options,
    )
