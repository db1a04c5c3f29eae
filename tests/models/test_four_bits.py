"""A base that bitsandbytes has quantized: what it is in memory, and that stages leave its bytes as they are.

Without bitsandbytes these tests are skipped; `test_quantized_environment` runs them in that of `make quantized`.
"""

import pytest
import torch
from composed import compose

from harness.config.build import cells_of
from harness.engine.claim import Claims
from harness.engine.store import Store
from harness.errors import ModelError
from harness.execution.attempt import WorkerContext, attempt
from harness.models import adapter
from harness.models.loading import ModelRef, loaded_model
from harness.models.local import LocalModel, ModelFolder
from harness.models.quantized import Quantization
from harness.models.saved import Precision
from harness.stages.grade import read_summary
from harness.stages.train_adapter import ADAPTER
from harness.tracking.jsonl import Jsonl
from harness.training.budget import Precision as Passing
from harness.training.passes import passes_on

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: run `make quantized`")

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def referred(mine, tmp_path):
    """Return a stored reference to the 4-bit base."""
    out = tmp_path / "out"
    out.mkdir()
    source = LocalModel(path=ModelFolder.parse(str(mine)), dtype=Precision.FLOAT32, quantized=Quantization.NF4)
    source.write(out)
    return ModelRef(base_key="k", base=out)


def packed(model):
    """Return the bytes of the quantized matrices and of what they are dequantized with, by name."""
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


def test_base_is_quantized_the_same_whenever_it_is_loaded(referred):
    found = []
    for _ in range(2):
        with loaded_model(referred, {}) as loaded:
            found.append((packed(loaded.model), loaded.model(input_ids=torch.arange(8)[None]).logits))
            assert loaded.model.get_output_embeddings().weight.dtype == torch.float32
            assert passes_on(loaded.model, "cuda", precision=Passing.FLOAT32, longest=8, rows=[4]).reason

    assert len(found[0][0]) == 14
    assert same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_merging_into_the_base_is_an_error_that_names_the_setting(referred, tmp_path):
    with loaded_model(referred, {}) as loaded:
        adapter.save(adapter.attach(loaded.model, adapter.Lora(rank=2), seed=0), tmp_path / "adapter")

    with (
        pytest.raises(ModelError, match=r"4-bit base.*`finetune\.adapter=single`"),
        loaded_model(ModelRef(base_key="k", base=referred.base, merged=(tmp_path / "adapter",)), {}),
    ):
        pass


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


CELL = (
    "+model.source.quantized=nf4",
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


def test_cell_runs_to_its_scores_on_one_base_whose_bytes_stay_as_they_were(mine, tmp_path):
    (cell,) = cells_of(compose(["model=local", f"model.source.path={mine}", "model.source.dtype=float32", *CELL]))
    stages, store, memory = cell.stages, Store(tmp_path / "store"), {}
    context = WorkerContext(store=store, claims=Claims(store.claims), tracker=Jsonl(), memory=memory)
    assert attempt(stages["base"], context).outcome == "executed"
    base = stages["base"].weights(store.path)
    with loaded_model(base, memory) as loaded:
        model, before = loaded.model, packed(loaded.model)

    outcomes = {name: attempt(stage, context).outcome for name, stage in stages.items() if name != "base"}

    assert set(outcomes.values()) == {"executed"}
    assert {"align", "finetune", "harm", "accuracy"} <= outcomes.keys()
    assert store.manifest(stages["base"].key).facts["quantized"] == "nf4"
    assert 0 <= read_summary(store.path(stages["harm"]))["score"] <= 100
    aligned, tuned = (adapter.read(store.path(stages[name]) / ADAPTER)[1] for name in ("align", "finetune"))
    assert any(not torch.equal(aligned[name], tuned[name]) for name in aligned)
    with loaded_model(base, memory) as loaded:
        assert loaded.model is model
        assert same(packed(loaded.model), before)
