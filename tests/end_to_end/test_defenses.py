"""Every defense that ships, from the command line to its row in the table, in one sweep that shares what it can."""

import csv
import io
import json
import shutil

import pytest
from product import TWO_SCORES, Harness

from harness.config.shipped import CONF

SLOTS = ("align", "finetune", "repair")
DEFENSES = sorted(
    {path.stem for slot in ("", *SLOTS) for path in (CONF / "defense" / slot).glob("*.yaml")} - {"booster_vaccine"}
)
SHORT = (
    "evaluation.new_tokens=4",
    "++tuned.ewc.fisher_rows=10",
    "++tuned.irr.unsafe_rows=20",
    "++tuned.safe_instruct.safety_rows=7",
    "++tuned.vlguard.safety_rows=5",
    "++tuned.paraphrase.safety_rows=6",
    "++tuned.backdoor_alignment.safety_rows=8",
    "++tuned.deep_augmentation={triplets: 12, benign_rows: 8}",
    "++tuned.derta={pairs: 6, benign_rows: 8}",
)
PARTS = ("defense=vaccine", "defense/finetune=lisa")


@pytest.fixture(scope="module")
def swept(base, tmp_path_factory) -> Harness:
    harness = Harness(tmp_path_factory.mktemp("every defense"))
    shutil.copytree(base, harness.store)
    run = harness("-m", f"defense={','.join(DEFENSES)}", "attack_ratio=p10", *TWO_SCORES, *SHORT)
    assert run.returncode == 0, run.stdout + run.stderr
    return harness


def table(harness, *arguments):
    done = harness("report", *arguments, "--format", "csv")
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.mark.slow
def test_every_defense_ends_with_both_scores(swept):
    rows = table(swept)

    questions = {row["probe"]: row["defense"] for row in rows if row["probe"]}
    assert questions == {"safe": "ptst", "secret": "backdoor_alignment"}
    assert len(rows) - len(questions) == len(DEFENSES) >= 10
    assert all(row["hs"] and row["fa"] and not row["missing"] for row in rows)
    assert {"sft", "lisa", "vlguard_joint", "vaccine+lisa"} <= {row["defense"] for row in rows}


@pytest.mark.slow
def test_defenses_of_one_slot_share_the_alignment(swept):
    rows = {row["defense"]: row for row in table(swept)}

    assert len({rows[name]["key.align"] for name in ("sft", "lisa", "kl", "ewc", "ldifs", "vlguard")}) == 1
    assert rows["vaccine+lisa"]["key.align"] == rows["vaccine"]["key.align"]


@pytest.mark.slow
def test_rows_mixed_in_are_counted_in_the_manifest(swept):
    facts = [json.loads(path.read_text())["facts"] for path in swept.store.glob("artifacts/finetune/*/manifest.json")]

    mixed = {fact["refusal_rows"]["mixed_in"]: fact for fact in facts if "mixed_in" in fact.get("refusal_rows", {})}
    assert {count: fact["rows"]["trained"] for count, fact in mixed.items()} == {7: 47, 5: 45, 6: 46, 8: 48}
    assert {fact["steps"] for fact in mixed.values()} == {5}
    # A safe adapter (SafeMERGE) is a fine-tuning too, on refusals alone.
    users = [fact for fact in facts if "benign" in fact["rows"]["by_kind"]]
    chosen = {fact["rows"]["trained"] for fact in users if "chosen" in fact}
    plain = [fact["rows"]["trained"] for fact in users if not {"refusal_rows", "chosen"} & fact.keys()]
    assert set(plain) == {40}
    assert {36, 32} <= chosen, "LARF leaves out a tenth, SEAL a fifth"


@pytest.mark.slow
def test_examples_that_an_alignment_is_given_besides_refusals_are_counted(swept):
    facts = [json.loads(path.read_text())["facts"] for path in swept.store.glob("artifacts/align/*/manifest.json")]

    mixed = [fact for fact in facts if "mixed_in" in fact.get("benign_rows", {})]
    assert [fact["benign_rows"]["mixed_in"] for fact in mixed] == [8, 8]
    assert {fact["rows"]["trained"] for fact in mixed} == {24 + 12 + 8}


@pytest.mark.slow
def test_defense_from_parts_is_the_row_of_its_preset(swept):
    run = swept(*PARTS, "attack_ratio=p10", *TWO_SCORES, *SHORT)

    assert "nothing to run" in run.stdout
    assert [row["defense"] for row in table(swept)] == ["vaccine+lisa"]


@pytest.mark.slow
def test_plan_says_which_cells_are_skipped_and_why(harness):
    arguments = ("plan", "-m", "defense=sft,booster", "corpus.shared_prompts=false", *TWO_SCORES)

    refused = harness(*arguments)
    told, plain = harness(*arguments, "on_invalid=skip", "--json"), harness(*arguments, "on_invalid=skip")

    assert refused.returncode == 2
    assert "corpus.harmful" in refused.stderr
    plan = json.loads(told.stdout)
    assert plan["cells"] == 1
    (skipped,) = plan["skipped"]
    assert "defense=booster" in skipped["overrides"]
    assert "`corpus.harmful`" in skipped["reasons"][0]
    assert "skipped defense=booster" in plain.stdout
