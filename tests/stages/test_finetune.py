"""Fine-tuning on real stages: what the manifest says of the adapter it begins with."""

import json

import pytest
from composed import compose
from test_repair import SMALL

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Fine-tune by a protocol; return the facts of the stage."""
    store = Store(tmp_path_factory.mktemp("store"))

    def run(protocol, *more):
        (cell,) = cells_of(compose([*SMALL, f"finetune.adapter={protocol}", *more]))
        stage = cell.stages["finetune"]
        assert LocalExecutor().run(Plan.of([stage]), store).complete
        return json.loads((store.path(stage) / "manifest.json").read_text())["facts"]

    return run


@pytest.mark.slow
def test_merge_before_fine_tuning_states_what_it_lost(facts):
    (lost,) = facts("double")["lost_in_merge"]

    assert 0 < lost < 1e-3, "the base is float32"


@pytest.mark.slow
def test_continued_adapter_lost_nothing(facts):
    assert "lost_in_merge" not in facts("single")


@pytest.mark.slow
def test_fine_tuning_with_forward_passes_only_states_how_many_and_what_it_kept(facts):
    found = facts("single", "update=tezo", "finetune.update.form=momentum")

    assert found["update"]["forward_passes"] == 2 * found["steps"] > 0
    assert found["update"]["optimizer_bytes"] == 0 < found["update"]["estimator_bytes"]
    assert {"loss", "kappa", "kappa_abs"} <= set(found["final"])
    assert "update" not in facts("single")
