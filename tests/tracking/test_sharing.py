"""A training stage that several sweeps of a store share: one run, whichever of them is sent."""

from made_sweep import add_sweep

from harness.engine.store import Store
from harness.tracking.wandb import Wandb
from harness.wandb_sync.run import WITH_ADAPTER
from harness.wandb_sync.server import ServerRun
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.sync import sync

FIRST, SECOND, THIRD = "first-00000001", "second-00000002", "third-00000003"


def _first(root, salt=""):
    store = Store(root)
    add_sweep(store, FIRST, [("sft", {})], (0.1,), salt=salt)
    return store


def _and_second(store, salt=""):
    add_sweep(store, SECOND, [("sft", {}), ("lisa", {})], (0.1, 0.2), salt=salt, day=2)


def _trained(store, sweep, settings=None):
    entries = SweepRuns(store, sweep, settings or Wandb()).finished()
    return {entry.id: entry for entry in entries if entry.kind != "cell"}


def test_shared_stage_is_the_same_run_from_each_of_its_sweeps(tmp_path):
    store = _first(tmp_path)
    _and_second(store)

    first, second = _trained(store, FIRST), _trained(store, SECOND)

    assert {kind: sum(entry.kind == kind for entry in first.values()) for kind in ("align", "finetune")} == {
        "align": 1,
        "finetune": 1,
    }
    assert first.keys() < second.keys()
    assert {key: entry.digest for key, entry in first.items()} == {key: second[key].digest for key in first}


def test_shared_stage_is_described_by_all_its_sweeps_and_says_what_it_no_longer_has(tmp_path):
    store = _first(tmp_path)
    (alone,) = (entry for entry in _trained(store, FIRST).values() if entry.kind == "align")
    _and_second(store)

    (shared,) = (entry for entry in _trained(store, FIRST).values() if entry.kind == "align")

    assert (alone.name, alone.config["ratio"], alone.tags) == ("align sft", 0.1, (FIRST,))
    assert (shared.name, shared.config["ratio"], shared.tags) == ("align lisa+sft", None, (FIRST, SECOND))
    assert shared.group == shared.config["sweep"] == FIRST
    assert alone.config.keys() == shared.config.keys()


def test_sweep_that_shares_nothing_changes_no_run(tmp_path):
    store = _first(tmp_path)
    before = {key: entry.digest for key, entry in _trained(store, FIRST).items()}

    add_sweep(store, THIRD, [("lisa", {})], (0.1, 0.2), salt="other", day=3)

    assert {key: entry.digest for key, entry in _trained(store, FIRST).items()} == before


def test_record_that_cannot_be_read_harms_no_other_sweep(tmp_path):
    store = _first(tmp_path)
    before = {key: entry.digest for key, entry in _trained(store, FIRST).items()}

    (store.root / "sweeps" / f"{SECOND}.json").write_text("{")

    assert {key: entry.digest for key, entry in _trained(store, FIRST).items()} == before


def test_run_with_its_adapter_shows_what_one_without_does_and_not_the_reverse(tmp_path):
    store = _first(tmp_path)
    (plain, adapted) = (
        next(iter(_trained(store, FIRST, Wandb(artifacts=artifacts)).values())) for artifacts in (False, True)
    )

    assert adapted.digest == plain.digest + WITH_ADAPTER
    assert [ServerRun(state="finished", shown=adapted.digest).shows(entry) for entry in (plain, adapted)] == [
        True,
        True,
    ]
    assert [ServerRun(state="finished", shown=plain.digest).shows(entry) for entry in (plain, adapted)] == [True, False]


def test_sync_of_sweeps_that_share_a_stage_sends_it_once_and_leaves_no_old_label(tmp_path, server, place):
    settings = Wandb(project="sharing")
    store = _first(tmp_path, salt="sharing")
    sync(store.root, FIRST, settings)
    _and_second(store, salt="sharing")

    second = sync(store.root, SECOND, settings)
    shown = server.runs("sharing")
    again = [sync(store.root, sweep, settings).sent for sweep in (FIRST, SECOND, FIRST)]

    assert second.missing == 0
    assert again == [0, 0, 0]
    assert server.runs("sharing") == shown
    (align,) = (run for run in shown.values() if run["config"]["kind"]["value"] == "align")
    assert align["display_name"] == "align lisa+sft"
    assert align["config"]["ratio"]["value"] is None
    assert sorted(align["tags"]) == [FIRST, SECOND]
