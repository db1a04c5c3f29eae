"""Training stages through the boundary of an attempt: in one process, in two, stopped, shrunk and sharded."""

import json
import shutil
from functools import partial

import pytest
from asking import Asking
from composed import compose
from safetensors.torch import load_file

from harness.config.build import cells_of
from harness.engine.claim import Claims
from harness.engine.store import Store
from harness.execution.attempt import WorkerContext, attempt
from harness.execution.ranks import Processes
from harness.models.loading import weights_of
from harness.tracking.jsonl import Jsonl
from harness.training.process_setup import prepare_process

SMALL = (
    "model.source.steps=20",
    "align.rows=24",
    "align.budget.epochs=6",
    "align.budget.batch_size=8",
)
ONE, TWO, SHARDED = Processes(), Processes(count=2), Processes(count=2, sharding="fsdp")
STEPS = 18


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chains():
    """The stages of a cell of each defense, by their part in it."""
    names = ("sft", "booster")
    cells = cells_of(compose([f"defense={','.join(names)}", *SMALL]))
    return {name: cell.stages for name, cell in zip(names, cells, strict=True)}


@pytest.fixture(scope="module")
def base(chains, tmp_path_factory):
    """A store that holds the base model."""
    store = Store(tmp_path_factory.mktemp("base"))
    assert run(store, chains["sft"]["base"]).outcome == "executed"
    return store


@pytest.fixture(scope="module")
def aligned(chains, base, tmp_path_factory):
    """Stores in which one or two processes aligned the base, by defense and number of processes."""
    made = {}

    def stores(defense, processes):
        if (defense, processes.total) not in made:
            store = copied(base, tmp_path_factory.mktemp("aligned") / "store")
            result = run(store, chains[defense]["align"], processes=processes)
            assert (result.outcome, result.message) == ("executed", "")
            made[defense, processes.total] = store
        return made[defense, processes.total]

    return stores


@pytest.fixture
def store(base, tmp_path):
    """A store of one's own that holds the base model."""
    return copied(base, tmp_path / "store")


def copied(store, root):
    shutil.copytree(store.root, root)
    return Store(root)


def run(store, stage, *, processes=ONE, **options):
    store.prepare()
    context = WorkerContext(
        store=store,
        claims=Claims(store.claims),
        tracker=options.pop("tracker", Jsonl()),
        processes={"align": processes},
        initialize=partial(prepare_process, 1),
        **options,
    )
    return attempt(stage, context)


def stopping(store, stage):
    """Return the options of an attempt that is asked to stop after its third step."""
    return {"tracker": Asking(), "stop": (store.work(stage.key) / "asked").exists}


def weights(store, stage):
    return load_file(store.path(stage) / "adapter" / "adapter_model.safetensors")


def history(store, stage):
    return [json.loads(line) for line in (store.path(stage) / "metrics.jsonl").read_text().splitlines()]


def content(store, stage):
    return {name: record.sha256 for name, record in store.manifest(stage.key).files.items()}


def assert_close(store, other, stage):
    ours, theirs = weights(store, stage), weights(other, stage)
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm() / tensor.norm()) < 1e-4
    for row, expected in zip(history(store, stage), history(other, stage), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


# Of the defenses it is enough that one draws rows of its own: `tests/contracts` steps with each in two processes.
@pytest.mark.slow
def test_stage_in_two_processes_stores_what_one_process_stores(chains, aligned):
    stage = chains["booster"]["align"]

    one, two = aligned("booster", ONE), aligned("booster", TWO)

    assert_close(two, one, stage)
    assert two.manifest(stage.key).provenance["processes"] == 2
    facts, expected = two.manifest(stage.key).facts, one.manifest(stage.key).facts
    assert facts.pop("final") == pytest.approx(expected.pop("final"), rel=1e-3)
    assert facts == expected
    curve = (two.work(stage.key) / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in curve] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "processes"),
    [("sft", ONE), ("booster", ONE), pytest.param("booster", SHARDED, marks=pytest.mark.slow)],
    ids=["sft", "booster", "booster-shared-and-sharded"],
)
def test_stage_that_is_stopped_goes_on_bitwise_in_the_next_attempt(defense, processes, chains, aligned, store):
    stage = chains[defense]["align"]

    first = run(store, stage, processes=processes, **stopping(store, stage))
    second = run(store, stage, processes=processes)

    stopped_at = int(first.message.split()[3])
    assert first.outcome == "stopped"
    assert stopped_at == 4 if processes is ONE else 4 <= stopped_at < STEPS
    assert second.outcome == "executed"
    # Shards are gathered as they are, so a run with whole models is what this one has to equal.
    assert content(store, stage) == content(aligned(defense, processes), stage)
    assert store.manifest(stage.key).provenance.get("sharding", "ddp") == processes.sharding
    assert [record["outcome"] for record in store.attempts(stage.key)] == ["stopped", "executed"]
    resumed = [json.loads(line)["step"] for line in (store.work(stage.key) / "curve.jsonl").read_text().splitlines()]
    assert resumed == list(range(stopped_at + 1, STEPS + 1))


@pytest.mark.slow
def test_stage_that_shards_the_weights_that_it_trains_stores_what_one_process_stores(base, store, tmp_path):
    whole = ["align.adapter=full", "align.budget.learning_rate=1e-3", "align.budget.epochs=2"]
    (cell,) = cells_of(compose([*SMALL, *whole, "finetune.adapter=single", "defense=vaccine"]))
    stage, other = cell.stages["align"], copied(base, tmp_path / "other")

    results = run(store, stage, processes=SHARDED), run(other, stage)

    assert [(result.outcome, result.message) for result in results] == [("executed", "")] * 2
    assert store.manifest(stage.key).provenance["sharding"] == "fsdp"
    start = weights_of(cell.stages["base"].weights(store.path))
    ours, theirs = (weights_of(stage.weights(each.path)) for each in (store, other))
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm() / (tensor - start[name]).norm()) < 1e-3
    for row, expected in zip(history(store, stage), history(other, stage), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_stage_that_is_asked_to_use_less_memory_says_what_it_did(chains, aligned, store):
    stage = chains["sft"]["align"]

    result = run(store, stage, shrink=4)

    assert result.outcome == "executed"
    facts = store.manifest(stage.key).facts
    assert facts["shrunk"] == {"factor": 4, "micro_batch_size": 2}
    assert facts["micro_batch_size"] == 2
    assert facts["steps"] == STEPS
    assert not {"shrunk", "micro_batch_size"} & set(aligned("sft", ONE).manifest(stage.key).facts)
    assert_close(store, aligned("sft", ONE), stage)


def test_stage_that_cannot_use_less_memory_says_so(chains, store):
    result = run(store, chains["sft"]["align"], shrink=16)

    assert (result.outcome, result.cause) == ("failed", "ModelError")
    assert "a micro-batch of 8 examples cannot be divided by 16" in result.message
