"""Fidelity: the product's own training path computes what the authors' trainers computed."""

import math

import pytest
import torch
from golden_runs import ALIGNMENT, FINETUNING, METHODS, STEPS, Recorder, build, golden, part, run, trainables
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from harness.defenses import ldifs
from harness.defenses.repnoise import loss as repnoise

TOLERANCE = 1e-5
RECORDED = (*METHODS, *FINETUNING, *ALIGNMENT)
LOSSES = {
    "vaccine": lambda row: row["perturbed_loss"],
    "booster_vaccine": lambda row: row["perturbed_loss"],
    "lisa": lambda row: row["loss"] + row["proximal"],
    "ldifs": lambda row: row["loss"] + row["penalty"],
    "repnoise": lambda row: row["loss"] + 0.1 * row["noise_distance"] - 0.02 * math.log(1 + row["harmful_layer_loss"]),
    "vlguard": lambda row: row["loss"] + FINETUNING["vlguard"].lamb * row["safety_loss"],
}
"""The loss that a trainer returned, in our metrics, where it is not `loss`."""


def deviation(ours, theirs):
    """Return the largest ``||ours - theirs|| / ||theirs||`` over tensors of the same names.

    Not entry by entry: the first steps of Adam divide an entry of the gradient by its own size, which turns the
    rounding of an entry near zero into a visible part of the learning rate.
    """
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


@pytest.fixture
def as_recorded(monkeypatch):
    """Let LDIFS and RepNoise count padding, and RepNoise draw its noise, as the authors' trainers do."""
    monkeypatch.setattr(ldifs, "counted_tokens", lambda batch: torch.ones_like(batch["labels"], dtype=torch.bool))
    monkeypatch.setattr(repnoise, "differing_positions", differing_ids)
    steps = iter(range(4))

    def gaussian(positions, *, layers, width, seed, device):
        # The recorder seeded the global generator before every step.
        torch.manual_seed(1000 + next(steps))
        return torch.stack([torch.randn(*positions.shape, width) * positions[:, :, None] for _ in range(layers)])

    monkeypatch.setattr(repnoise, "gaussian", gaussian)


def differing_ids(batch, other):
    """Return where the ids of a batch differ from those of another with as many rows, padded with zeros or cut."""
    ids, time = batch["input_ids"], batch["input_ids"].shape[1]
    gap = max(0, time - other["input_ids"].shape[1])
    return ids != torch.nn.functional.pad(other["input_ids"], (0, gap))[:, :time]


def gradients_and_weights(name, work):
    """Return the gradients before and the weights after every optimizer step."""
    model, gradients, weights = build(name), [], []
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: gradients.append({n: p.grad.clone() for n, p in named.items()})),
        register_optimizer_step_post_hook(lambda *_: weights.append(trainables(model))),
    ]

    try:
        run(name, work, model=model)
    finally:
        for hook in hooks:
            hook.remove()
    return gradients, weights


@pytest.mark.parametrize("name", RECORDED)
def test_training_on_golden_batches_gives_golden_gradients_and_weights(name, tmp_path, as_recorded):
    _, tensors = golden(name)

    gradients, weights = gradients_and_weights(name, tmp_path)

    assert len(gradients) == len(weights) == STEPS.get(name, 4)
    for step, (gradient, after) in enumerate(zip(gradients, weights, strict=True)):
        assert deviation(gradient, part(tensors, f"grad.{step}.")) < TOLERANCE
        assert deviation(after, part(tensors, f"param.{step}.")) < TOLERANCE


def test_padding_is_what_separates_ldifs_from_the_authors_trainer(tmp_path):
    _, tensors = golden("ldifs")

    gradients, _ = gradients_and_weights("ldifs", tmp_path)

    # Zero in the first step, when the features are the aligned ones.
    found = [deviation(gradient, part(tensors, f"grad.{step}.")) for step, gradient in enumerate(gradients)]
    assert found[0] < TOLERANCE
    assert all(TOLERANCE < each < 1e-4 for each in found[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_training_on_golden_batches_logs_golden_losses(name, tmp_path, as_recorded):
    meta, _ = golden(name)
    tracker = Recorder()

    report = run(name, tmp_path, tracker=tracker)

    reported = LOSSES.get(name, lambda row: row["loss"])
    losses = [reported(row) for row in report.history]
    torch.testing.assert_close(losses, meta["losses"], rtol=TOLERANCE, atol=0)
    assert [row["step"] for row in report.history] == list(range(1, len(losses) + 1))
    assert tracker.rows == list(report.history)
