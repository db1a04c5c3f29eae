"""The keys of the embedded default. If one changes, so does its meaning: bump a version, and say so in the commit."""

import json
from pathlib import Path

import pytest
from composed import compose

from harness.config.build import cells_of

LATER = ("over_refusal_answers", "over_refusal")
GOLDEN = Path(__file__).parents[1] / "golden" / "keys.json"


@pytest.mark.parametrize("defense", ["sft", "vaccine", "booster", "booster_vaccine"])
def test_keys_of_the_default_cell_are_those_of_the_past(defense):
    (cell,) = cells_of(compose([f"defense={defense}"]))

    keys = {part: stage.key for part, stage in cell.stages.items()}
    golden = json.loads(GOLDEN.read_text())[defense]
    assert {part: key for part, key in keys.items() if part in golden} == golden
    # Leaves that came later, with keys of their own.
    assert keys.keys() - golden.keys() == {f"{prefix}{part}" for prefix in ("", "aligned_") for part in LATER}
    assert len(set(keys.values())) == len(keys)


def test_slot_spelled_out_as_null_keeps_the_keys():
    (plain,) = cells_of(compose(["defense=sft"]))
    (spelled_out,) = cells_of(compose(["defense=sft", "defense.repair=null", "seed=0"]))

    assert plain.stages["harm"].key == spelled_out.stages["harm"].key
