"""Attacks as settings of a cell: ratio, number of rows, victim, and what is refused at composition."""

import re

import pytest
from composed import compose

from harness.config.build import Skipped, cells_of, check_cells
from harness.errors import ConfigError


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def reasons_of(*overrides):
    with pytest.raises(ConfigError) as refused:
        cell_of(*overrides)
    return {problem.path: problem.text for problem in refused.value.problems}


@pytest.mark.parametrize("rows", [10, 50, 100])
def test_harmful_rows_alone_replace_the_rows_of_the_user_at_any_ratio(rows):
    few, many = (
        cell_of("attack=pure", f"attack.method.rows={rows}", ratio)
        for ratio in ("attack_ratio=p01", "attack_ratio=p20")
    )

    poison = few.stages["poison"]
    assert (poison.rows, poison.ratio, poison.compat) == (rows, 1.0, "exact")
    assert few.labels["ratio"] == 1.0
    assert few.identity == many.identity


def test_attack_that_sends_its_rows_alone_counts_them_exactly():
    assert cell_of("attack=pure", "finetune.compat=booster").stages["poison"].compat == "exact"
    assert cell_of("attack=mix", "finetune.compat=booster").stages["poison"].compat == "booster"


def test_no_attack_at_ratio_0_unless_it_selects():
    plain = cell_of("attack=none")

    for attack in ("mix", "pure", "backdoor", "identity_shift", "jailbreak_tuning", "refuse_then_comply"):
        assert cell_of(f"attack={attack}", "attack_ratio=p00").keys == plain.keys
    selected, same = (cell_of("attack=benign_selection", f"attack_ratio={ratio}") for ratio in ("p00", "p20"))
    assert selected.keys == same.keys
    assert selected.labels["ratio"] == selected.stages["poison"].ratio == 0.0
    assert selected.stages["poison"].attack.name == "benign_selection"
    assert selected.keys["poison"] != plain.keys["poison"]


def test_stage_of_the_mixture_reads_what_the_attack_needs_and_no_more():
    pools = {name: cell_of(f"attack={name}").stages["poison"].harmful is not None for name in ("mix", "identity_shift")}
    scores = ("representation", "self_inf_n")
    selected = [cell_of("attack=benign_selection", f"attack.method.score={score}") for score in scores]

    assert pools == {"mix": True, "identity_shift": False}
    assert [cell.stages["poison"].harmful is not None for cell in selected] == [True, False]
    assert all(cell.stages["poison"].victim == cell.stages["align"] for cell in selected)
    assert cell_of("attack=mix").stages["poison"].victim is None


def test_plain_victim_is_the_alignment_without_a_defense_for_every_defense():
    own = {
        defense: cell_of("attack=benign_selection", f"defense={defense}") for defense in ("sft", "booster", "vaccine")
    }
    plain = {
        defense: cell_of("attack=benign_selection", "attack.victim=plain", f"defense={defense}") for defense in own
    }

    assert len({cell.keys["poison"] for cell in own.values()}) == 3
    assert {cell.keys["poison"] for cell in plain.values()} == {own["sft"].keys["poison"]}
    assert {cell.stages["poison"].victim.key for cell in plain.values()} == {own["sft"].keys["align"]}
    assert len({cell.keys["finetune"] for cell in plain.values()}) == 3


def test_plain_victim_of_an_attack_that_reads_no_model_is_refused():
    reasons = reasons_of("attack=mix", "+attack.victim=plain")

    assert reasons == {"attack.victim": "`mix` does not read the aligned model, so it has no victim; expected `own`"}


def test_victim_of_another_kind_is_refused():
    assert "attack.victim" in reasons_of("attack=benign_selection", "attack.victim=other")


@pytest.mark.parametrize("compat", ["exact", "booster"])
def test_share_that_comes_to_no_row_is_refused(compat):
    reasons = reasons_of("attack_ratio=p01", "finetune.rows=10", f"finetune.compat={compat}")

    assert list(reasons) == ["attack.ratio"]
    assert reasons["attack.ratio"].startswith(
        "0.01 of 10 rows (`finetune.rows`) gives `mix` none; expected at least one"
    )


def test_share_that_comes_to_no_row_leaves_out_its_cell_of_a_sweep():
    first, second = check_cells(compose(["attack_ratio=p01,p10", "finetune.rows=10", "on_invalid=skip"]))

    assert isinstance(first, Skipped)
    assert second.stages["poison"].ratio == 0.1


def test_backdoor_without_room_for_a_twin_is_refused():
    assert "expected at least 2" in reasons_of("attack=backdoor", "finetune.rows=10")["attack.method"]
    assert cell_of("attack=backdoor", "finetune.rows=20").stages["poison"].attack.name == "backdoor"


@pytest.mark.parametrize(
    "settings", [("attack=backdoor",), ("attack=benign_selection", "attack.method.score=gradient")]
)
def test_corpus_without_refusals_of_the_attackers_prompts_is_refused(settings):
    reasons = reasons_of("experiment=booster", "corpus=beavertails_pairs", *settings)

    assert "needs a refusal for each harmful prompt, but no example of `labelled_pairs`" in reasons["attack.method"]


def test_more_anchors_than_the_attacker_has_rows_are_refused():
    reasons = reasons_of("attack=benign_selection", "attack.method.anchors=501")

    assert (
        "501 harmful examples are needed for 501 anchors, but the attacker has 500" in reasons["attack.method.anchors"]
    )
    assert "attack.method.nearest" in reasons_of("attack=benign_selection", "attack.method.nearest=11")


@pytest.mark.parametrize("place", ["model.encoding", "evaluation.encoding"])
@pytest.mark.parametrize(
    ("attack", "name"), [("backdoor", "suffix"), ("identity_shift", "system"), ("jailbreak_tuning", "prefix")]
)
def test_probe_that_would_replace_what_the_encoding_has_is_refused(place, attack, name):
    plus = "+" if place == "model.encoding" else ""
    reasons = reasons_of(f"attack={attack}", f"{plus}{place}.{name}='some text'")

    assert list(reasons) == [f"{place}.{name}"]
    assert "'some text' would be replaced by that of the attack's probe" in reasons[f"{place}.{name}"]


def test_empty_wordings_are_refused():
    assert "attack.method.trigger" in reasons_of("attack=backdoor", "attack.method.trigger=' '")
    assert "attack.method.refusal" in reasons_of("attack=refuse_then_comply", "attack.method.refusal=''")
    assert "attack.method.disguise" in reasons_of("attack=jailbreak_tuning", "attack.method.disguise=hat")


@pytest.mark.parametrize(
    ("attack", "label"), [("backdoor", "triggered"), ("identity_shift", "identity"), ("jailbreak_tuning", "disguised")]
)
def test_attack_is_evaluated_with_and_without_its_words(attack, label):
    cell = cell_of(f"attack={attack}")

    (probe,) = cell.probes
    assert probe.swept["probe"] == label
    assert probe.keys["finetune"] == cell.keys["finetune"]
    assert probe.keys["harm"] != cell.keys["harm"]


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        (
            ("attack=pure", "attack.method.rows=501"),
            "attack.method.rows",
            "501 harmful rows requested, but the attacker",
        ),
        (
            ("attack=identity_shift", "attack.method.rows=1001"),
            "attack.method.rows",
            "1001 benign rows requested, 1001 of",
        ),
        (("attack=mix", "attack.ratio=1.0"), "attack.ratio", "600 harmful rows requested, but the attacker has 500"),
        (
            ("attack=refuse_then_comply", "finetune.rows=1001"),
            "finetune.rows",
            "1001 benign rows requested, 100 of them",
        ),
        (
            ("attack=benign_selection", "finetune.rows=1000"),
            "finetune.rows",
            "chooses 1000 of the 1000 rows of the task",
        ),
    ],
)
def test_too_few_rows_for_an_attack_name_the_setting_that_asks_for_them(settings, path, words):
    (problem,) = cell_of(*settings).stages["poison"].preflight()

    assert problem.path == path
    assert words in problem.text
    assert f"`{path}`" in problem.text


VIRUS = ("attack=virus", "over_refusal=none")


def test_virus_crafts_against_the_guard_of_the_model_whatever_the_guardrail():
    cells = {rail: cell_of(*VIRUS, f"guardrail={rail}") for rail in ("none", "tiny", "llama_guard2")}
    poisons = {rail: cell.stages["poison"] for rail, cell in cells.items()}

    assert {poison.guard.name for poison in poisons.values()} == {"tiny_guard"}
    assert len({poison.key for poison in poisons.values()}) == 1
    assert poisons["none"].victim == cells["none"].stages["align"]
    assert cells["none"].stages["attack_guard"] == poisons["none"].guard_model
    # The guardrail's model is made once, if it is the same.
    assert "attack_guard" not in cells["tiny"].stages
    assert cells["tiny"].stages["guard"] == poisons["tiny"].guard_model
    assert all("attack_guard" not in cell.swept for cell in cells.values())


def test_mixing_reads_the_template_and_neither_model_nor_guard():
    poison = cell_of("attack=mixing", "defense=booster").stages["poison"]

    assert (poison.victim, poison.guard, poison.guard_model) == (None, None, None)
    assert poison.encoding == cell_of().stages["finetune"].encoding
    assert poison.key == cell_of("attack=mixing", "defense=vaccine").keys["poison"]


def test_settings_of_virus_without_weight_for_the_guard_need_none():
    poison = cell_of(*VIRUS, "attack.method.lamb=0").stages["poison"]

    assert (poison.guard, poison.guard_model) == (None, None)


@pytest.mark.slow
def test_sweep_over_attacks_and_guardrails_composes_with_one_crafting_a_victim():
    cells = cells_of(
        compose(
            [
                *("defense=sft,booster,vaccine", "attack=virus,mixing,mix", "attack_ratio=p10"),
                "guardrail=none,llama_guard2",
            ]
        )
    )

    assert len(cells) == 18
    assert len({cell.keys["poison"] for cell in cells}) == 3 + 1 + 1
    assert len({cell.keys["finetune"] for cell in cells}) == 18


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("attack_guard=llama_guard2",), r"but `llama_guard2` has 128000 tokens and `tiny` \d+, not the same"),
        (("model=llama3_8b", "attack_guard=tiny"), r"`tiny_guard` has the \d+ tokens of the synthetic world and"),
        (("model=llama2_7b",), "crafts against a guard's weights, but none is chosen; expected one with the"),
        (
            ("+attack.guard={_target_: harness.judges.keywords.Keywords}", "model=smollm2"),
            "crafts against a guard's weights, which `keywords` does not give; expected one that",
        ),
    ],
)
def test_guard_that_cannot_be_read_with_the_victims_vocabulary_is_refused(settings, words):
    reasons = reasons_of(*VIRUS, *settings)

    assert list(reasons) == ["attack.guard"]
    assert re.search(words, reasons["attack.guard"])


@pytest.mark.slow
def test_guard_of_the_attack_is_an_axis_if_it_is_not_that_of_the_model():
    model = ("model=llama3_8b", "attack=virus")

    assert cell_of(*model).stages["poison"].guard.name == "llama_guard2"
    assert "attack_guard" not in cell_of(*model).swept
    assert cell_of(*model, "attack_guard=llama_guard3").swept["attack_guard"] == "llama_guard3"


def test_virus_on_an_adapter_with_magnitudes_is_refused():
    assert (
        "reads the gradients of plain LoRA"
        in reasons_of(*VIRUS, "+align.adapter.variant=dora")["align.adapter.variant"]
    )


@pytest.mark.slow
def test_settings_of_virus_out_of_range_are_refused():
    for wrong in ("lamb=1.5", "steps=0", "top_k=0", "candidates=0"):
        assert list(reasons_of(*VIRUS, f"attack.method.{wrong}")) == [f"attack.method.{wrong.split('=')[0]}"]
