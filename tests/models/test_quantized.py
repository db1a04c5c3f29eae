"""A base in four bits: what it is in memory, that stages leave it as it is, and what is refused with it."""

import importlib.util
import json
import os
from dataclasses import replace

import pytest
import torch
from composed import compose

from harness.config.build import cells_of
from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import ConfigError, ModelError
from harness.execution.attempt import WorkerContext, attempt
from harness.local.executor import LocalExecutor
from harness.models import adapter, local
from harness.models.loading import ModelRef, loaded_model
from harness.models.local import LocalModel, ModelFolder
from harness.models.quantized import Quantization
from harness.models.saved import Precision, SavedModel
from harness.slurm.settings import Resources, Slurm
from harness.stages.grade import read_summary
from harness.stages.train_adapter import ADAPTER
from harness.sweep.quantized_bases import QuantizedBase, check_quantized_bases, quantized_bases
from harness.tracking.jsonl import Jsonl
from harness.training.budget import Precision as Passing
from harness.training.passes import passes_on

NF4 = "+model.source.quantized=nf4"
ONE = Resources(minutes=10)


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed (pip install 'harness[quantized]')"
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mine(save_base):
    folder = save_base("mine")
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return folder


@pytest.fixture
def referred(mine, tmp_path):
    """Return a stored reference to the base in four bits."""
    out = tmp_path / "out"
    out.mkdir()
    source = LocalModel(path=ModelFolder.parse(str(mine)), dtype=Precision.FLOAT32, quantized=Quantization.NF4)
    source.write(out)
    return ModelRef(base_key="k", base=out)


def cell_of(folder, *overrides):
    (cell,) = cells_of(
        compose(["model=local", f"model.source.path={folder}", "model.source.dtype=float32", *overrides])
    )
    return cell


def packed(model):
    """Return the bytes of the matrices in four bits and of what they are dequantized with, by name."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.uint8:
            state = parameter.quant_state
            found[name] = [parameter.detach().clone(), state.absmax.clone(), state.state2.absmax.clone()]
    return found


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


def test_null_adds_nothing_to_keys_and_references(mine, tmp_path):
    path = ModelFolder.parse(str(mine))
    LocalModel(path=path).write(tmp_path)
    plain, four_bits = (cell_of(mine, "finetune=none", *more).stages["base"] for more in ((), (NF4,)))

    assert "quantized" not in json.loads((tmp_path / local.REFERENCE).read_text())
    assert local.open_local(tmp_path, "cpu").model.dtype == torch.bfloat16
    assert plain.key != four_bits.key
    assert replace(four_bits.source, quantized=None) == plain.source


def test_package_that_is_missing_is_named_with_its_extra(mine, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))

    (problem,) = cell_of(mine, NF4, "finetune.adapter=single").stages["base"].preflight()

    assert problem.path == "model.source.quantized"
    assert "pip install 'harness[quantized]'" in problem.text
    assert cell_of(mine).stages["base"].preflight() == []


def test_bytes_are_four_bits_with_the_magnitudes_of_blocks_in_layers_and_the_dtype_outside(mine):
    # Two layers of 2 x 32 x 32, 2 x 16 x 32 and 3 x 64 x 32 entries; embeddings and head of 64 x 32; five norms of 32.
    inside, outside = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32), 2 * 64 * 32 + 5 * 32
    saved = SavedModel(mine)

    assert saved.bytes(Precision.BFLOAT16) == 2 * (inside + outside)
    # 18,432 entries: 9,216 bytes, 288 magnitudes of a byte, 288 / 256 of four bytes.
    assert saved.bytes(Precision.BFLOAT16, Quantization.NF4) == 9216 + 288 + 5 + 2 * outside


@pytest.mark.parametrize(
    ("overrides", "path", "reason"),
    [
        (["finetune.adapter=double"], "finetune.adapter", "merges the aligned adapter"),
        (["align.adapter=full", "finetune.adapter=single"], "align.adapter", "float32 while they are trained"),
        (["align.adapter=none", "finetune.adapter=double", "+finetune.fresh=full"], "finetune.fresh", "float32"),
        (["+align.adapter.variant=dora", "finetune.adapter=single"], "align.adapter.variant", "norms of the rows"),
        (
            ["defense=salora", "finetune.adapter=double"],
            "defense.finetune",
            "starts the adapter at their main directions",
        ),
        (["defense=sn_tune", "finetune.adapter=single"], "defense.align", "norms of their columns"),
        (["attack=ablation", "finetune.adapter=single"], "tamper", "changes matrices of the aligned model"),
        (["fuse=moe", "finetune.adapter=single"], "fuse", "shapes of its matrices"),
        (
            ["evaluation.decoding.engine=vllm", "finetune.adapter=single"],
            "evaluation.decoding.engine",
            "quantize the base in another way",
        ),
    ],
)
def test_what_needs_the_matrices_of_the_base_is_refused_with_the_reason(mine, overrides, path, reason):
    with pytest.raises(ConfigError) as refused:
        cell_of(mine, NF4, *overrides)

    assert [problem for problem in refused.value.problems if problem.path == path and reason in problem.text]


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune.adapter=single"],
        ["finetune.adapter=single", "defense=booster"],
        ["align.adapter=none", "finetune.adapter=double", "+finetune.fresh={rank: 4}"],
        ["finetune.adapter=double", "+finetune.fresh=none"],
        ["finetune=none"],
    ],
)
def test_adapters_on_the_base_are_not_refused(mine, overrides):
    assert cell_of(mine, NF4, *overrides).stages["base"].source.quantized is Quantization.NF4


def test_sharding_is_refused_and_data_parallel_is_not(mine):
    stages = Plan.of(cell_of(mine, NF4, "finetune.adapter=single").leaves).stages
    whole, sharded = (
        Slurm(resources={"default": ONE, "align": replace(ONE, processes=2, sharding=sharding)})
        for sharding in ("ddp", "fsdp")
    )

    check_quantized_bases(stages, whole)
    with pytest.raises(ConfigError, match=r"`cluster.resources.align.sharding`: .*packed in blocks"):
        check_quantized_bases(stages, sharded)


def test_plan_lists_the_base_once_with_its_bytes_and_no_base_that_is_whole(mine):
    stages = [stage for more in ((), (NF4,)) for stage in cell_of(mine, "finetune=none", *more).stages.values()]

    # As above, with float32 outside of the layers.
    assert quantized_bases(stages) == [QuantizedBase("local_model", "nf4", 9216 + 288 + 5 + 4 * (2 * 64 * 32 + 5 * 32))]


@pytest.mark.usefixtures("bitsandbytes")
def test_base_is_loaded_in_four_bits_the_same_every_time(referred):
    found = []
    for _ in range(2):
        with loaded_model(referred, {}) as loaded:
            found.append((packed(loaded.model), loaded.model(input_ids=torch.arange(8)[None]).logits))
            assert loaded.model.get_output_embeddings().weight.dtype == torch.float32
            assert passes_on(loaded.model, "cuda", precision=Passing.FLOAT32, longest=8, rows=[4]).reason

    assert len(found[0][0]) == 14
    assert same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.usefixtures("bitsandbytes")
def test_merging_into_the_base_is_an_error_that_names_the_setting(referred, tmp_path):
    with loaded_model(referred, {}) as loaded:
        adapter.save(adapter.attach(loaded.model, adapter.Lora(rank=2), seed=0), tmp_path / "adapter")

    with (
        pytest.raises(ModelError, match=r"four bits.*`finetune\.adapter=single`"),
        loaded_model(replace(referred, merged=(tmp_path / "adapter",)), {}),
    ):
        pass


CELL = (
    NF4,
    "finetune.adapter=single",
    "corpus.refusal.rows=20",
    "corpus.attack.rows=20",
    "corpus.evaluation.rows=4",
    "evaluation.rows=4",
    "evaluation.new_tokens=2",
    "align.rows=20",
    "align.adapter.rank=4",
    "align.budget.epochs=1",
    "finetune.rows=20",
    "finetune.budget.epochs=1",
)


@pytest.mark.slow
@pytest.mark.usefixtures("bitsandbytes")
def test_cell_runs_to_its_scores_and_a_second_run_is_the_same_bit_for_bit(mine, tmp_path):
    cell, found = cell_of(mine, *CELL), []
    for run in ("one", "two"):
        store = Store(tmp_path / run)
        assert LocalExecutor().run(Plan.of(cell.leaves), store).complete
        stages = cell.stages
        adapters = [adapter.read(store.path(stages[name]) / ADAPTER)[1] for name in ("align", "finetune")]
        found.append((adapters, read_summary(store.path(stages["harm"]))))

    assert store.manifest(stages["base"].key).facts["quantized"] == "nf4"
    assert found[0][1] == found[1][1]
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(found[0][0][0][name], found[0][0][1][name]) for name in found[0][0][0])


@pytest.mark.slow
@pytest.mark.usefixtures("bitsandbytes")
def test_two_trainings_of_a_process_share_one_base_and_leave_its_bytes_as_they_were(mine, tmp_path):
    stages, store, memory = cell_of(mine, *CELL).stages, Store(tmp_path / "store"), {}
    context = WorkerContext(store=store, claims=Claims(store.claims), tracker=Jsonl(), memory=memory)
    assert attempt(stages["base"], context).outcome == "executed"
    base = stages["base"].weights(store.path)
    with loaded_model(base, memory) as loaded:
        model, before = loaded.model, packed(loaded.model)

    trained = [attempt(stages[name], context).outcome for name in ("align", "poison", "finetune")]

    assert trained == ["executed"] * 3
    with loaded_model(base, memory) as loaded:
        assert loaded.model is model
        assert same(packed(loaded.model), before)


@pytest.mark.usefixtures("bitsandbytes")
def test_adapters_are_detached_and_the_base_is_as_it_was(referred):
    memory = {}
    with loaded_model(referred, memory) as loaded:
        before, model = packed(loaded.model), loaded.model
    for step in range(2):
        with loaded_model(referred, memory) as loaded:
            assert loaded.model is model
            trained = adapter.attach(loaded.model, adapter.Lora(rank=2), seed=step).train()
            ids = torch.arange(8)[None]
            trained(input_ids=ids, labels=ids).loss.backward()
            gradients = [each.grad for each in trained.parameters() if each.requires_grad]
            assert any(bool(each.any()) for each in gradients)

    with loaded_model(referred, memory) as loaded:
        assert loaded.model is model
        assert same(packed(loaded.model), before)
