"""The guardrail as a choice: no key without one, an axis with one, and a guard that cannot run is refused."""

import pytest
from composed import compose

from harness.config.build import cells_of, settings_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import ConfigError, HarnessError
from harness.judges.prompted.llama_guard import LlamaGuard2
from harness.stages.moderate import Moderate
from harness.sweep.run import check_services

BEFORE = ("base", "align", "poison", "aligned_harm", "aligned_harm_answers", "aligned_accuracy", "aligned_over_refusal")
AFTER = ("finetune", "harm_answers", "harm", "task_answers", "accuracy", "over_refusal")


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def test_cell_without_a_guardrail_is_the_one_that_it_was_before_there_was_any():
    chosen, silent = cell_of("guardrail=none"), cell_of()

    assert "moderate" not in silent.stages
    assert "guardrail" not in silent.swept
    assert chosen.identity == silent.identity


def test_guardrail_changes_the_keys_of_the_fine_tuning_and_of_what_depends_on_it_only():
    plain, guarded = cell_of().keys, cell_of("guardrail=tiny").keys

    assert guarded.keys() - plain.keys() == {"guard", "moderate"}
    assert all(guarded[part] == plain[part] for part in BEFORE)
    assert all(guarded[part] != plain[part] for part in AFTER)


def test_cells_of_all_defenses_share_the_moderated_rows_and_all_ratios_the_guard():
    first, second = cell_of("guardrail=tiny", "defense=booster"), cell_of("guardrail=tiny", "defense=vaccine")
    other = cell_of("guardrail=tiny", "attack_ratio=p20", "seed=3")

    assert first.keys["moderate"] == second.keys["moderate"] != other.keys["moderate"]
    assert first.keys["guard"] == other.keys["guard"]


@pytest.mark.parametrize(
    ("overrides", "name", "max_answer"),
    [
        (["guardrail=tiny"], "tiny", None),
        (["guardrail=llama_guard2"], "llama_guard2", 4096),
        (["guardrail=llama_guard3", "guardrail.max_answer=512"], "llama_guard3", 512),
        (["+guardrail={_target_: harness.judges.keywords.Keywords}"], "keywords", None),
    ],
)
def test_guardrail_is_an_axis_of_the_sweep_by_the_name_of_its_option(overrides, name, max_answer):
    cell = cell_of(*overrides)

    assert cell.swept["guardrail"] == name
    assert getattr(cell.stages["moderate"].guard, "max_answer", None) == max_answer
    assert cell.stages["finetune"].mixture is cell.stages["moderate"]


@pytest.mark.parametrize("guardrail", ["tiny", "llama_guard3"])
def test_job_rebuilds_the_stage_from_its_stored_spec(guardrail, tmp_path):
    cell, store = cell_of(f"guardrail={guardrail}"), Store(tmp_path / "store")
    store.register(Plan.of(cell.leaves).stages)

    rebuilt = store.stage(cell.keys["moderate"])

    assert rebuilt == cell.stages["moderate"]
    assert rebuilt.guard == cell.stages["moderate"].guard
    assert rebuilt.model == cell.stages["moderate"].model


def test_guard_that_asks_a_service_needs_its_key_before_anything_runs(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    overrides = ["judge=openai", "judge.model=m", "cluster=local"]
    composition = compose(overrides)
    judge = cells_of(composition)[0].stages["harm"].judge
    stage = Moderate(sent=cell_of().stages["poison"], guard=judge)

    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        check_services([stage], settings_of(composition[0]).cluster)


def test_class_that_is_no_guard_and_settings_out_of_range_are_refused_with_their_path():
    with pytest.raises(ConfigError, match=r"`guardrail\._target_`: .*Mix` is not a `Judge`: it lacks `grade`"):
        cell_of("+guardrail={_target_: harness.attacks.mix.Mix}")
    with pytest.raises(ConfigError, match=r"`guardrail\.source\.policy`: has `royale`; expected one or more of"):
        cell_of("guardrail=tiny", "guardrail.source.policy=[royale]")
    with pytest.raises(ConfigError, match="`llama_guard4` is not an option"):
        cell_of("guardrail=llama_guard4")


def test_guard_whose_weights_are_not_on_an_offline_machine_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cell = cell_of("guardrail=llama_guard2")

    with pytest.raises(HarnessError) as error:
        Plan.of(cell.leaves).preflight(Store(tmp_path / "store"))

    assert f"`guardrail`: {LlamaGuard2().repo}" in str(error.value)
    assert "neither in the Hub's cache nor can it be downloaded" in str(error.value)
    assert not (tmp_path / "store" / "artifacts").exists()
