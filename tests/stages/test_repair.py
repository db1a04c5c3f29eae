"""Repair on real stages: the chain of a small cell, with a model that was hardly trained."""

import json
from dataclasses import replace

import pytest
import torch
from composed import compose
from safetensors.torch import load_file

from harness.config.build import cells_of
from harness.corpora.examples import Role
from harness.engine.identity import payload_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor
from harness.models.adapter import read
from harness.models.loading import loaded_model

SMALL = [
    "cluster=local",
    "model.source.steps=2",
    "corpus.refusal.rows=20",
    "corpus.attack.rows=20",
    "corpus.evaluation.rows=2",
    "evaluation.rows=2",
    "align.rows=20",
    "align.adapter.rank=4",
    "align.budget.epochs=1",
    "finetune.rows=20",
    "finetune.budget.epochs=1",
]

MERGED = ["defense=safemerge", "defense.repair.threshold=1.0", "defense.repair.safe_rows=20", "finetune.adapter=double"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all, so that what chains share runs once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def repaired(store):
    """Run the chain of a cell up to its repair; return the stage."""

    def run(*overrides):
        (cell,) = cells_of(compose([*SMALL, *overrides]))
        stage = cell.stages["repair"]
        outcome = LocalExecutor().run(Plan.of([stage]), store)
        assert outcome.complete
        return stage

    return run


def factors(store, stage):
    return read(store.path(stage) / "adapter")[1]


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def facts(store, stage):
    return json.loads((store.path(stage) / "manifest.json").read_text())["facts"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["single", "double"])
def test_repair_changes_the_tuned_adapter_and_nothing_else(store, repaired, protocol):
    stage = repaired("defense=antidote", "defense.repair.dense_ratio=0.25", f"finetune.adapter={protocol}")

    before, after = factors(store, stage.tuned), factors(store, stage)

    assert before.keys() == after.keys()
    for name, tuned in before.items():
        zeroed = after[name] != tuned
        assert not after[name][zeroed].any(), "what changed is zero"
        assert ((after[name] == 0).sum(1) >= tuned.shape[1] // 4).all(), "a quarter of every row"
    weights, tuned = stage.weights(store.path), stage.tuned.weights(store.path)
    assert (weights.base, weights.merged) == (tuned.base, tuned.merged)
    assert len(weights.merged) == (protocol == "double")


def test_repair_states_rows_rank_and_change(store, repaired):
    stage = repaired("defense=antidote", "defense.repair.dense_ratio=0.25")

    found = facts(store, stage)

    assert found["harmful_rows"] == {"drawn_from": 20, "dropped": 0}
    assert found["rows"] == {"128": {"zeroed": 32, "share": 0.25}, "4": {"zeroed": 1, "share": 0.25}}
    assert found["attack_and_defense_share"] == {"rows": 0, "prompts": 0}
    assert 0 < found["change"]["share"] <= 0.25
    distance = (flat(factors(store, stage)) - flat(factors(store, stage.tuned))).norm()
    assert found["change"]["norm"] == pytest.approx(float(distance), rel=1e-4)


@pytest.mark.slow
def test_repair_measures_fine_tuning_from_the_aligned_adapter_that_was_continued(store, repaired):
    stage = repaired("defense=random_perturbation", "finetune.adapter=single")

    moved = flat(factors(store, stage.tuned)) - flat(factors(store, stage.tuned.aligned))

    assert facts(store, stage)["change"]["finetune_norm"] == pytest.approx(float(moved.norm()), rel=1e-4)


@pytest.mark.slow
def test_repair_measures_fine_tuning_from_the_fresh_adapter_that_was_trained(store, repaired):
    # One step moves an entry by about the learning rate, so that the start shows in the result.
    stage = repaired("defense=random_perturbation", "finetune.adapter=double", "finetune.budget.batch_size=20")

    found = facts(store, stage)["change"]["finetune_norm"]

    entries = flat(factors(store, stage.tuned)).numel()
    assert 0 < found < 1.5 * stage.tuned.budget.learning_rate * entries**0.5


@pytest.mark.slow
def test_repair_reports_rows_that_the_attacker_has_as_well(store, repaired):
    stage = repaired("defense=antidote")
    leaked = replace(stage, harmful=replace(stage.tuned.mixture.harmful, role=Role.HARMFUL))

    assert LocalExecutor().run(Plan.of([leaked]), store).complete

    assert facts(store, leaked)["attack_and_defense_share"] == {"rows": 2, "prompts": 2}


@pytest.mark.slow
def test_panacea_travels_from_fine_tuning_to_repair(store, repaired):
    stage = repaired("defense=panacea")

    left = load_file(store.path(stage.tuned) / "handover" / "last.safetensors")

    tuned, after = factors(store, stage.tuned), factors(store, stage)
    assert left.keys() == tuned.keys()
    for name, epsilon in left.items():
        torch.testing.assert_close(after[name], tuned[name] + epsilon, rtol=0, atol=0)
    assert flat(left).norm().item() == pytest.approx(1.0, rel=1e-4)
    assert facts(store, stage)["change"]["norm"] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.slow
def test_panacea_repairs_share_one_fine_tuning(repaired):
    last, mean = (repaired("defense=panacea", f"defense.repair.epsilon={which}") for which in ("last", "mean"))

    assert last.tuned.key == mean.tuned.key
    assert last.key != mean.key


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["single", "double"])
def test_repair_is_given_the_change_by_alignment_under_both_adapter_protocols(store, repaired, protocol):
    stage = repaired("defense=safe_lora", "defense.repair.threshold=1.0", f"finetune.adapter={protocol}")

    aligned, tuned, after = (factors(store, each) for each in (stage.tuned.aligned, stage.tuned, stage))

    found = facts(store, stage)
    assert found["projected_share"] == 1
    for name_a in (name for name in aligned if "lora_A" in name):
        name_b, scale = name_a.replace("lora_A", "lora_B"), stage.tuned.adapter.scale
        v, w, result = (scale * each[name_b].double() @ each[name_a].double() for each in (aligned, tuned, after))
        user = w - v if protocol == "single" else w
        image = v @ v.T @ user / v.norm()
        cosine = (image * user).sum() / (image.norm() * user.norm())
        assert found["cosines"][name_a.partition(".lora_A")[0]] == pytest.approx(float(cosine), abs=1e-4)
        expected = v + image if protocol == "single" else image
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4 * float(expected.norm()))


@pytest.mark.slow
def test_safe_adapter_is_trained_on_refusals_from_the_aligned_model_and_shared(store, repaired):
    stage = repaired(*MERGED)
    benign = cells_of(compose([*SMALL, *MERGED, "attack_ratio=p00"]))[0].stages["repair"]

    assert stage.safe.key == benign.safe.key != stage.tuned.key
    assert stage.safe.aligned.key == stage.tuned.aligned.key
    assert facts(store, stage.safe)["rows"]["by_kind"] == {"refusal": {"sent": 20, "dropped": 0, "cut": 0}}
    assert facts(store, stage)["merged_share"] == 1
    (lora, tuned), (_, safe), (_, after) = (
        read(store.path(each) / "adapter") for each in (stage.tuned, stage.safe, stage)
    )
    for name_a in (name for name in after if "lora_A" in name):
        name_b = name_a.replace("lora_A", "lora_B")
        pair = [(0.8**0.5, tuned), (0.2**0.5, safe)]
        a, b = (sum(weight * each[name] for weight, each in pair) for name in (name_a, name_b))
        torch.testing.assert_close(after[name_b] @ after[name_a], b @ a, rtol=0, atol=1e-6)
        assert not torch.equal(tuned[name_a], safe[name_a])
    assert lora.rank == 4


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["single", "double"])
def test_repair_may_leave_an_adapter_of_another_rank(store, repaired, protocol):
    stage = repaired("defense=resta", f"finetune.adapter={protocol}")

    (_, aligned), (narrow, tuned), (wide, after) = (
        read(store.path(each) / "adapter") for each in (stage.tuned.aligned, stage.tuned, stage)
    )

    assert (narrow.rank, wide.rank, wide.scale) == (4, 8, narrow.scale)
    vector = change = 0.0
    for name_a in (name for name in aligned if "lora_A" in name):
        name_b = name_a.replace("lora_A", "lora_B")
        v, w, result = (narrow.scale * each[name_b] @ each[name_a] for each in (aligned, tuned, after))
        torch.testing.assert_close(result, w + 0.5 * v, rtol=0, atol=1e-6)
        vector += float((0.5 * v).square().sum())
        change += float((w - v if protocol == "single" else w).square().sum())
    found = facts(store, stage)["change"]
    assert found == {
        "rank": 8,
        "product_norm": pytest.approx(vector**0.5, rel=1e-3),
        "finetune_product_norm": pytest.approx(change**0.5, rel=1e-3),
    }
    with loaded_model(stage.weights(store.path), {}) as loaded:
        held = dict(loaded.model.named_parameters())
        assert all(torch.equal(held[name], value) for name, value in after.items())


def test_fine_tuning_that_leaves_nothing_stores_no_handover(store, repaired):
    stage = repaired("defense=random_perturbation")

    assert not (store.path(stage.tuned) / "handover").exists()


@pytest.mark.slow
def test_repair_is_repeatable(store, repaired, tmp_path):
    stage = repaired("defense=antidote", "defense.repair.score=random")
    other = Store(tmp_path)
    outcome = LocalExecutor().run(Plan.of([stage]), other)

    assert outcome.complete
    assert torch.equal(flat(factors(store, stage)), flat(factors(other, stage)))


def test_repair_leaves_the_shared_base_as_it_was(store, repaired):
    stage = repaired("defense=antidote", "finetune.adapter=double")
    memory = {}
    with loaded_model(stage.tuned.aligned.base.weights(store.path), memory) as lent:
        before = {name: value.clone() for name, value in lent.model.named_parameters()}

    with loaded_model(stage.weights(store.path), memory):
        pass

    with loaded_model(stage.tuned.aligned.base.weights(store.path), memory) as lent:
        assert all(torch.equal(value, before[name]) for name, value in lent.model.named_parameters())


@pytest.mark.slow
def test_repair_identity_reads_the_method_and_its_rows_but_not_another_slot():
    def stages(*overrides):
        return cells_of(compose([*SMALL, *overrides]))[0].stages

    plain, half, one = (
        stages(*each)
        for each in (["defense=sft"], ["defense=antidote"], ["defense=antidote", "defense.repair.dense_ratio=0.01"])
    )

    assert plain["finetune"].key == half["finetune"].key == one["finetune"].key
    assert half["repair"].key != one["repair"].key
    assert payload_of(half["repair"])["fields"]["harmful"]["fields"]["role"] == "harmful"
    assert "harmful" not in payload_of(stages("defense=random_perturbation")["repair"])["fields"]
