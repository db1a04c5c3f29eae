"""Fusion as a choice: no key without one, an axis with one, and what cannot be fused is refused with its path."""

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.errors import ConfigError

MLP = "align.adapter.targets=[gate_proj,up_proj,down_proj]"


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


@pytest.fixture(scope="module")
def plain():
    return cell_of("fuse=none")


@pytest.fixture(scope="module")
def mean():
    return cell_of("fuse=mean")


def test_cell_without_a_fusion_is_the_one_that_it_was_before_there_was_any(plain):
    silent = cell_of()

    assert plain.identity == silent.identity
    assert not {"fuse", "route", "helpful", "honest"} & plain.stages.keys()
    assert "fuse" not in plain.swept


def test_fusion_shares_base_and_alignment_and_is_attacked_in_its_place(plain, mean):
    assert all(mean.keys[part] == plain.keys[part] for part in ("base", "align", "poison"))
    assert all(mean.keys[part] != plain.keys[part] for part in ("finetune", "harm", "aligned_harm", "accuracy"))
    assert mean.stages["finetune"].aligned is mean.stages["fuse"]
    assert mean.stages["aligned_harm_answers"].model is mean.stages["fuse"]
    assert mean.swept["fuse"] == "mean"


def test_fusions_share_their_experts_whose_adapters_start_apart(mean):
    other = cell_of("fuse=ties")

    experts = ("helpful", "align", "honest")
    assert all(other.keys[part] == mean.keys[part] for part in experts)
    assert other.keys["fuse"] != mean.keys["fuse"]
    assert len({mean.stages[part].seed for part in experts}) == 3


@pytest.mark.parametrize("option", ["mean", "joint", "moe"])
def test_order_in_which_experts_are_listed_changes_no_key(option):
    one, other = (
        cell_of(f"fuse={option}", f"fuse.experts=[{names}]")
        for names in ("honest,helpful,harmless", "harmless,honest,helpful")
    )

    assert one.keys == other.keys
    assert cell_of(f"fuse={option}", "fuse.experts=[harmless,honest]", *TWO[option]).keys != one.keys


TWO = {"mean": (), "joint": (), "moe": ("fuse.top_k=1",)}


def test_defense_of_the_alignment_is_that_of_the_harmless_expert(mean):
    defended = cell_of("fuse=mean", "defense=vaccine")

    assert defended.keys["helpful"] == mean.keys["helpful"]
    assert defended.keys["align"] != mean.keys["align"]


def test_joint_adapter_has_the_parameters_of_all_experts_at_their_scale_and_all_rows():
    joint = cell_of("fuse=joint").stages["joint"]

    assert (joint.adapter.rank, joint.adapter.alpha, joint.adapter.scale) == (96, 12, 4 / 32)
    assert {source.name for source in joint.rows} == {"allowed_requests", "facts", "slice"}
    assert joint.budget.epochs == 5
    assert cell_of("fuse=joint", "fuse.epochs=7").stages["joint"].budget.epochs == 7


def test_routed_experts_are_measured_before_and_after_the_attack():
    cell = cell_of("fuse=moe")

    assert cell.stages["aligned_routes"].model is cell.stages["route"]
    assert cell.stages["routes"].model is cell.stages["finetune"]
    assert cell.stages["align"].adapter.targets == ("gate_proj", "up_proj", "down_proj")
    assert cell.stages["routes"].rows == cell.stages["route"].rows
    by_key = {cell.keys[part]: part for part in ("helpful", "align", "honest")}
    route = cell.stages["route"]
    found = {(by_key[expert.key], rows.name) for expert, rows in zip(route.experts, route.rows, strict=True)}
    assert found == {("helpful", "allowed_requests"), ("align", "slice"), ("honest", "facts")}


def test_rows_of_experts_follow_the_corpus():
    helpful = cell_of("fuse=mean", "experiment=booster").stages["helpful"]

    assert (helpful.rows[0].origin.source.id, helpful.rows[0].rows) == ("alpaca", 5000)
    with pytest.raises(ConfigError, match="`experts`: `tinny` is not an option"):
        cell_of("experts=tinny")


def test_corpus_without_rows_of_experts_has_a_harmless_one_only(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.yaml").write_text("defaults: [tiny]\n")
    lines = ["corpus=mine", "over_refusal=none", "fuse=mean"]

    with pytest.raises(ConfigError, match="`experts`: no rows are given"):
        cells_of(compose(lines, str(tmp_path)))
    (alone,) = cells_of(compose([*lines, "fuse.experts=[harmless]"], str(tmp_path)))
    assert alone.stages["fuse"].experts == (alone.stages["align"],)


def test_attack_that_is_crafted_against_the_plain_alignment_shares_it_with_the_fusion():
    overrides = ("fuse=mean", "attack=benign_selection", "attack.victim=plain")

    cell, defended = cell_of(*overrides), cell_of(*overrides, "defense=vaccine")

    assert "victim" not in cell.stages
    assert cell.stages["poison"].victim == cell.stages["align"] == defended.stages["victim"]


@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        (["fuse=mean", "fuse.experts=[]"], "fuse.experts", "is empty"),
        (["fuse=mean", "fuse.experts=[honest,honest]"], "fuse.experts", "lists an expert twice"),
        (["fuse=mean", "fuse.experts=[funny]"], r"fuse.experts\[0\]", "'funny' is not known"),
        (["fuse=mean", "+align.adapter.variant=dora"], "align.adapter.variant", "cannot be fused"),
        (["fuse=ties", "fuse.method.density=0"], "fuse.method.density", "is not positive"),
        (["fuse=joint", "defense=vaccine"], "defense.align", "`vaccine` protects the alignment on refusals"),
        (["fuse=moe", "align.adapter.targets=[q_proj]"], "align.adapter.targets", "feed-forward block"),
        (["fuse=moe", "fuse.top_k=4"], "fuse.top_k", "4 of 3 experts"),
        (["fuse=moe", "fuse.adapter.targets=[up_proj]"], "fuse.adapter.targets", "which the experts adapt"),
        (["fuse=moe", "fuse.method.gate_weight=-1"], "fuse.method.gate_weight", "is negative"),
        (["fuse=moe", "evaluation.decoding.engine=vllm"], "evaluation.decoding.engine", "routed experts"),
        (["fuse=moe", "attack=ablation", "attack_ratio=p00"], "tamper", "shared matrices only"),
        (["fuse=moe", "defense/repair=safe_lora"], "defense.repair", "`safe_lora` uses the change of the weights"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_its_path(overrides, path, words):
    with pytest.raises(ConfigError, match=f"`{path}`.*{words}"):
        cell_of(*overrides)
