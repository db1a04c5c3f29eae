"""What tells cells and conditions apart, and what a record says of stages, beside what was known of earlier ones."""

import json

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.engine.cells import CellIdentity
from harness.engine.identity import flatten, key_of
from harness.engine.spec import describe
from harness.report.data.conditions import conditions_of, differing, repeats
from harness.report.data.earlier_records import settings_in, traits_of
from harness.report.data.stage_records import StageRecord
from harness.report.data.tidy import load_rows
from harness.report.data.training_protocol import training_protocol_of
from harness.report.stats.results import load_results
from harness.sweep.record import describe_stage, sweep_id

CELL = {"labels": {"defense": "sft", "ratio": 0.1}, "swept": {"a.b": 1}, "keys": {"align": "x", "harm": "y"}}
CHAIN = ["experiment=tiny", "defense=sft", "defense/repair=antidote", "attack_ratio=p10"]


@pytest.fixture(scope="module", params=["single", "double"])
def cell(request):
    (cell,) = cells_of(compose([*CHAIN, f"finetune.adapter={request.param}"]))
    return cell


def test_cell_is_told_by_labels_swept_values_and_keys_and_by_nothing_else():
    same = CellIdentity.of({**CELL, "swept": {"a.b": "1"}, "overrides": ["x"], "protocol": {"judge": 1}})
    others = [CellIdentity.of({**CELL, part: {**CELL[part], "new": 2}}) for part in ("labels", "swept", "keys")]

    assert CellIdentity.of(CELL) == same
    assert hash(CellIdentity.of(CELL)) == hash(same)
    assert CellIdentity.of(CELL) not in others
    assert len({CellIdentity.of(CELL), same, *others}) == 4


def test_ids_of_runs_and_sweeps_are_those_that_stores_and_servers_have(cell):
    labels, swept, keys = dict(cell.labels), dict(cell.swept), {part: s.key for part, s in cell.stages.items()}

    assert CellIdentity.of(CELL).run_id("s-1") == "ba86eb736e70908b"
    assert cell.identity.run_id("s-1") == key_of(["s-1", labels, swept, keys])
    assert sweep_id([cell], "t") == f"t-{key_of([key_of({'labels': labels, 'keys': keys})])[:8]}"


def test_what_a_record_says_of_a_stage_is_what_was_known_of_its_kind(cell):
    for stage in cell.stages.values():
        told, known, spec = describe_stage(stage), traits_of(stage.name), describe(stage)
        settings = known.pop("settings")
        recorded = told.pop("settings")
        if not stage.trains:
            del known["attacked"]

        assert {name: told[name] for name in known} == known
        assert recorded == (None if settings is None else settings_in(settings, spec))
        for path in (recorded or {}).values():
            assert any(f"{name}.".startswith(f"{path}.") for name in flatten(spec)), path


def test_report_of_a_record_that_tells_its_stages_is_that_of_one_that_does_not(drawn):
    before = drawn.store.read_sweep("drawn-1")
    parts = {key: part for each in before["cells"] for part, key in each["keys"].items()}
    kinds = {"harm_answers": "generate"} | {part: part for part in ("base", "align", "poison", "finetune")}
    told = {}
    for key, part in parts.items():
        kind = kinds.get(part, "grade")
        told[key] = {"kind": kind, "parents": [], **traits_of(kind)}
        if kind == "finetune":
            told[key]["settings"] = settings_in(told[key]["settings"], {"protocol": "single"})
    after = json.loads(json.dumps({**before, "stages": told}))

    assert load_rows(drawn.store, after).equals(load_rows(drawn.store, before))
    assert load_results(drawn.store, after).training == {"align": ["key.align"], "finetune": ["key.finetune"]}


def test_kind_that_no_table_names_is_reported_by_what_its_record_says(drawn):
    record = drawn.store.read_sweep("drawn-1")
    first = record["cells"][0]
    first["keys"]["moderate"] = drawn._trained("moderate", "moderate-1", {"threshold": 0.5, "harmful": {"rows": 7}})
    traits = {"trains": True, "parallel": True, "attacked": True, "settings": {"moderate.threshold": "threshold"}}
    record["stages"] = {"moderate-1": {"kind": "moderate", "parents": [], **traits}}

    findings = load_results(drawn.store, record)

    assert findings.training["moderate"] == ["key.moderate"]
    assert findings.rows["protocol.moderate.threshold"].tolist()[0] == 0.5
    assert findings.rows["protocol.moderate.processes"].tolist()[0] == 1


def test_cell_that_is_there_twice_is_one_replicate(drawn):
    record = drawn.store.read_sweep("drawn-1")
    once = conditions_of(load_rows(drawn.store, record))
    record["cells"].append(record["cells"][0])

    twice = conditions_of(load_rows(drawn.store, record))

    assert [len(each.cells) for each in twice] == [len(each.cells) for each in once]


def test_what_a_cell_lacks_tells_it_from_one_that_has_it():
    assert differing([{"a": 1, "b": 2}, {"a": 1}]) == ["b"]
    assert differing([{"a": 1, "b": 2}, {"a": 3, "b": 4}], ["b", "c"]) == ["b"]


def test_values_repeat_others_if_they_split_cells_alike():
    assert repeats(["x", "x", "y"], ["1", "1", "2"])
    assert not repeats(["x", "y", "y"], ["1", "1", "2"])
    assert not repeats(["x", "y", "z"], ["1", "1", "2"])


def test_protocol_of_a_cell_that_is_made_of_others_is_named_as_theirs():
    spec = {"budget": {"_target_": "settings/budget@1", "epochs": 2}}
    common = {"uses": 1, "seconds": 1.0, "trains": True, "parallel": True, "settings": {"finetune.budget": "budget"}}
    records = {key: StageRecord(key=key, kind="finetune", spec=spec, **common) for key in ("a", "b")}

    alone = training_protocol_of({"finetune": "a"}, records)
    of_both = training_protocol_of({"sft.finetune": "a", "vaccine.finetune": "b"}, records)

    assert alone == of_both
    assert (alone["finetune.budget.epochs"], alone["finetune.processes"]) == (2, 1)
