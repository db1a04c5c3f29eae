"""Fusions on real stages: the model that is attacked is what the experts say, and the experts stay as they are."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from composed import compose
from safetensors.torch import load_file
from test_repair import SMALL

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.stage import StageContext, never
from harness.engine.store import Store
from harness.errors import Stopped
from harness.local.executor import LocalExecutor
from harness.models import adapter, routed

EXPERTS = ("helpful", "align", "honest")
QUICK = ["align.adapter.targets=[gate_proj,up_proj,down_proj]", "task=tiny_honest"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all, so that base and experts run once."""
    return Store(tmp_path_factory.mktemp("store"))


def cell_of(*overrides):
    (cell,) = cells_of(compose([*SMALL, *QUICK, *overrides]))
    return cell


def done(store, stage):
    assert LocalExecutor().run(Plan.of([stage]), store).complete
    return store.path(stage)


def facts(folder):
    return json.loads((folder / "manifest.json").read_text())["facts"]


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def change(folder):
    return {layer: b @ a for layer, (b, a) in adapter.products(folder / "adapter").items()}


@pytest.mark.slow
def test_fusion_is_the_sum_of_the_experts_and_leaves_them_as_they_are(store):
    cell = cell_of("fuse=sum", "fuse.method.scale=0.5")
    experts = [done(store, cell.stages[part]) for part in EXPERTS]
    before = [contents(folder) for folder in experts]

    folder = done(store, cell.stages["fuse"])

    assert [contents(each) for each in experts] == before
    lora, _ = adapter.read(folder / "adapter")
    assert (lora.rank, lora.scale) == (12, 4 / 4), "the rank of all, at the scale of one"
    own = [change(each) for each in experts]
    for layer, found in change(folder).items():
        torch.testing.assert_close(found, 0.5 * sum(each[layer] for each in own), rtol=1e-5, atol=1e-7)
    stated = facts(folder)
    key = cell.keys["align"]
    norm = sum(float(part.double().square().sum()) for part in own[1].values()) ** 0.5
    assert stated["norms"][key] == pytest.approx(norm, rel=1e-5)
    assert len(stated["cosines"]) == 3
    assert all(-1 <= value <= 1 for value in stated["cosines"].values())


@pytest.mark.slow
def test_ties_states_the_norm_that_its_rank_loses(store):
    full, low = (
        facts(done(store, cell_of("fuse=ties", f"fuse.method.rank={rank}").stages["fuse"])) for rank in (128, 2)
    )

    assert full["lost_norm"] == pytest.approx(0, abs=1e-6)
    assert 0.1 < low["lost_norm"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["single", "double"])
@pytest.mark.parametrize("option", ["mean", "moe"])
def test_fused_alignment_is_attacked_and_evaluated_to_the_end(store, option, protocol):
    cell = cell_of(f"fuse={option}", f"finetune.adapter={protocol}", "defense/repair=antidote")

    assert LocalExecutor().run(Plan.of(cell.leaves), store).complete

    weights = cell.stages["repair"].weights(store.path)
    assert len(weights.merged) == (protocol == "double")
    assert (weights.routed is None) == (option == "mean")
    assert facts(store.path(cell.stages["finetune"]))["attack_and_defense_share"] == {"rows": 0, "prompts": 0}


class Silent:
    """A tracker that keeps nothing."""

    def log(self, metrics, *, step):
        """Drop the metrics."""

    def close(self):
        """Do nothing."""


def routed_in(folder, store, stage, stop=never):
    """Run a stage in a folder of its own; return the folder of its artifact and its facts."""
    out, work = folder / "out", folder / "work"
    for each in (out, work):
        each.mkdir(parents=True, exist_ok=True)
    context = StageContext(out=out, work=work, locate=store.path, tracker=Silent(), stop=stop)
    stage.run(context)
    return out, context.facts


@pytest.fixture(scope="module")
def mixture(store):
    """The stage of a mixture whose experts are trained."""
    stage = cell_of("fuse=moe", "fuse.adapter.rank=2").stages["route"]
    for expert in stage.experts:
        done(store, expert)
    return stage


def tensors(out):
    return load_file(out / routed.FOLDER / routed.WEIGHTS)


@pytest.mark.slow
def test_mixture_starts_from_the_experts_and_trains_experts_router_and_adapter(store, mixture, tmp_path):
    experts = [store.path(expert) for expert in mixture.experts]
    before = [contents(folder) for folder in experts]

    out, stated = routed_in(tmp_path, store, mixture)

    assert [contents(folder) for folder in experts] == before
    first, last = load_file(tmp_path / "work" / "start" / routed.WEIGHTS), tensors(out)
    place = "model.layers.0.mlp"
    for index, folder in enumerate(experts):
        stored = adapter.read(folder / "adapter")[1]
        name = f"base_model.model.{place}.up_proj.lora_B.default.weight"
        assert torch.equal(first[f"{place}.up_proj.b"][index], stored[name])
    assert all(not torch.equal(last[name], first[name]) for name in first)
    assert any(value.any() for name, value in adapter.read(out / "adapter")[1].items() if ".lora_B." in name)
    assert {key: counts["sent"] for key, counts in stated["rows"]["by_kind"].items()} == {
        expert.key: 20 for expert in mixture.experts
    }
    assert {"loss", "gate", "drift"} <= stated["final"].keys()


@pytest.mark.slow
def test_mixture_that_is_stopped_resumes_to_the_same_bytes(store, mixture, tmp_path):
    polls = iter(range(100))

    whole, _ = routed_in(tmp_path / "whole", store, mixture)
    with pytest.raises(Stopped):
        routed_in(tmp_path / "parts", store, mixture, stop=lambda: next(polls) >= 2)
    resumed, _ = routed_in(tmp_path / "parts", store, mixture)

    assert contents(resumed) == contents(whole)


@pytest.mark.slow
def test_frozen_router_stays_at_its_start_and_labels_matter_to_a_trained_one_only(store, mixture, tmp_path):
    plain = replace(mixture, method=replace(mixture.method, gate_weight=0.0, router="frozen"))

    frozen, _ = routed_in(tmp_path / "frozen", store, plain)
    shuffled, _ = routed_in(tmp_path / "shuffled", store, replace(plain, shuffled_labels=True))
    trained, _ = routed_in(tmp_path / "trained", store, mixture)
    other, _ = routed_in(tmp_path / "other", store, replace(mixture, shuffled_labels=True))

    start = load_file(tmp_path / "frozen" / "work" / "start" / routed.WEIGHTS)
    routers = [name for name in start if name.endswith(".router")]
    assert all(torch.equal(tensors(frozen)[name], start[name]) for name in routers)
    assert contents(frozen / routed.FOLDER) == contents(shuffled / routed.FOLDER)
    assert contents(trained / routed.FOLDER) != contents(other / routed.FOLDER)


@pytest.mark.slow
def test_strong_drift_penalty_keeps_the_experts_at_their_start(store, mixture, tmp_path):
    def moved(name, weight):
        method = replace(mixture.method, drift_weight=weight)
        out, _ = routed_in(tmp_path / name, store, replace(mixture, method=method))
        start = load_file(tmp_path / name / "work" / "start" / routed.WEIGHTS)
        matrix = "model.layers.0.mlp.up_proj"
        last, first = (values[f"{matrix}.b"] @ values[f"{matrix}.a"] for values in (tensors(out), start))
        return float((last - first).norm())

    assert moved("strong", 1e3) < 0.8 * moved("free", 0.0)


@pytest.mark.slow
def test_measured_routes_are_shares_of_every_expert_by_source(store):
    cell = cell_of("fuse=moe", "fuse.adapter.rank=2")

    stated = facts(done(store, cell.stages["aligned_routes"]))

    assert stated["experts"] == sorted(cell.keys[part] for part in EXPERTS)
    assert stated["shares"].keys() == set(stated["experts"])
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in stated["shares"].values())
