"""The federation as a choice: no key without one, an axis with one, and what clients cannot do is refused."""

from collections import Counter

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import ConfigError
from harness.slurm.packing import arrange_jobs

BEFORE = ("base", "align", "aligned_harm", "aligned_harm_answers", "aligned_accuracy", "aligned_over_refusal")
AFTER = ("poison", "finetune", "harm_answers", "harm", "task_answers", "accuracy", "over_refusal")


def cell_of(*overrides):
    (cell,) = cells_of(compose(list(overrides)))
    return cell


def test_cell_without_a_federation_is_the_one_that_it_was_before_there_was_any():
    chosen, silent = cell_of("federation=none"), cell_of()

    assert not {name for name in silent.swept if name.startswith("federation")}
    assert chosen.identity == silent.identity


def test_federation_changes_the_keys_of_the_mixture_and_of_what_depends_on_it_only():
    plain, federated = cell_of().keys, cell_of("federation=tiny").keys

    assert plain.keys() == federated.keys()
    assert all(federated[part] == plain[part] for part in BEFORE)
    assert all(federated[part] != plain[part] for part in AFTER)


def test_aggregators_share_the_mixture_and_are_an_axis_of_the_sweep():
    cells = cells_of(compose(["federation=tiny", "federation/aggregate=mean,median,dnc"]))

    assert [cell.swept["federation.aggregate"] for cell in cells] == ["mean", "median", "dnc"]
    assert {cell.swept["federation"] for cell in cells} == {"tiny"}
    assert len({cell.keys["poison"] for cell in cells}) == 1
    assert len({cell.keys["finetune"] for cell in cells}) == 3


@pytest.mark.parametrize(("jobs", "per_round"), [("round", 1), ("client", 3)])
def test_rounds_as_jobs_change_the_plan_and_the_keys_of_the_finetuning_only(jobs, per_round):
    whole, divided = cell_of("federation=tiny"), cell_of("federation=tiny", f"federation.jobs={jobs}")
    counts = Counter(stage.name for stage in Plan.of(divided.leaves).stages)

    assert cell_of("federation=tiny", "federation.jobs=null").keys == whole.keys
    assert divided.keys.keys() == whole.keys.keys()
    assert all(divided.keys[part] == whole.keys[part] for part in (*BEFORE, "poison"))
    assert divided.keys["finetune"] != whole.keys["finetune"]
    assert (counts["client"], counts["server"], counts["finetune"]) == (20 * per_round, 20, 1)


def test_clients_of_a_round_are_jobs_that_wait_for_the_server_and_a_round_is_one_job():
    def arrays(jobs):
        small = ("federation=tiny", "federation.rounds=2", f"federation.jobs={jobs}")
        todo = [stage for stage in Plan.of(cell_of(*small).leaves).stages if stage.name in ("client", "server")]
        fused = arrange_jobs(todo, queued=(), fuse=("server",), fuse_siblings=(), chains_per_job={}, limit=100)
        return [[[stage.name for stage in chain] for (chain,) in array.jobs] for array in fused]

    assert arrays("client") == [[["client"]] * 3, [["server"]]] * 2
    assert arrays("round") == [[["client", "server"]]] * 2


@pytest.mark.parametrize(
    ("overrides", "malicious"), [(["attack_ratio=p00"], 0), (["attack_ratio=p10"], 1), (["attack_ratio=p15"], 2)]
)
def test_as_many_clients_are_malicious_as_the_attackers_rows_need(overrides, malicious):
    assert cell_of("federation=tiny", *overrides).stages["poison"].clients.malicious == malicious


def test_without_an_attack_no_client_is_malicious_whatever_the_setting():
    silent = cell_of("federation=tiny", "attack_ratio=p00")

    assert cell_of("federation=tiny", "attack_ratio=p00", "federation.malicious=3").keys == silent.keys
    assert cell_of("federation=tiny", "attack=none", "federation.malicious=0").keys == silent.keys


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["federation.malicious=0"], r"`federation.malicious`: 0 of 10 clients hold 0 of 600 rows.*60"),
        (["federation.malicious=11"], "`federation.malicious`: 11 of 10 clients"),
        (["federation.per_round=11"], "`federation.per_round`: 11 of 10 clients"),
        (["federation.per_round=2", "federation/aggregate=residual"], r"`federation.per_round`.*at least 3"),
        (["federation/aggregate=median", "federation.average=product"], "`federation.average`: `median`"),
        (["finetune.rows=5"], "`federation.clients`: 5 rows for 10 clients"),
        (["guardrail=tiny"], "`guardrail`: `tiny_guard` reads the rows"),
        (["defense=salora"], "`defense.finetune`: `salora` looks at all of the user's rows"),
        (["defense/finetune=panacea"], "`defense.finetune`: `panacea` hands the perturbation"),
        (["defense/finetune=bds"], "`defense.finetune`: `bds` gives every row a weight"),
        (["defense/finetune=ml_lr"], "`defense.finetune`: `ml_lr` trains parts of the model"),
        (["defense/finetune=seal"], "`defense.finetune`: `seal` changes the rows"),
        (["federation.average=product", "+align.adapter.variant=dora"], "`federation.average`: .*`dora`"),
        (["attack=pure"], "`attack.method`: `pure` is one user's"),
        (["attack=benign_selection"], "`attack.method`: `benign_selection` is one user's"),
        (["attack=ablation"], "`federation`: `federation` belongs to a fine-tuning"),
    ],
)
def test_what_a_federation_cannot_do_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        cell_of("federation=tiny", *overrides)


def test_job_rebuilds_the_stages_from_their_stored_specs(tmp_path):
    cell, store = cell_of("federation=tiny", "federation/aggregate=residual"), Store(tmp_path / "store")
    store.register(Plan.of(cell.leaves).stages)

    for part in ("poison", "finetune"):
        assert store.stage(cell.keys[part]) == cell.stages[part]
    assert store.stage(cell.keys["finetune"]).rounds == cell.stages["finetune"].rounds


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["defense=salora"], "starts from an adapter of its own"),
        (["finetune.adapter=double", "+finetune.fresh=full"], "observes the gradients of an adapter"),
    ],
)
def test_leakage_of_what_the_probe_cannot_start_from_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        cells_of(compose(["leakage=matching", *overrides]))
