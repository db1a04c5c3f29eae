"""4-bit bases without the package that quantizes: keys, size, what is refused, and what a plan shows."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from composed import compose

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.errors import ConfigError, ModelError
from harness.models import local
from harness.models.loading import ModelRef, loaded_model
from harness.models.local import LocalModel, ModelFolder
from harness.models.quantized import Quantization
from harness.models.saved import Precision, SavedModel
from harness.slurm.settings import Resources, Slurm
from harness.sweep.quantized_bases import QuantizedBase, check_quantized_bases, quantized_bases

NF4 = "+model.source.quantized=nf4"
ONE = Resources(minutes=10)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def _without_bitsandbytes(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))


def cell_of(folder, *overrides):
    (cell,) = cells_of(
        compose(["model=local", f"model.source.path={folder}", "model.source.dtype=float32", *overrides])
    )
    return cell


def test_null_adds_nothing_to_keys_and_references(mine, tmp_path):
    LocalModel(path=ModelFolder.parse(str(mine))).write(tmp_path)
    plain, quantized = (cell_of(mine, "finetune=none", *more).stages["base"] for more in ((), (NF4,)))

    assert "quantized" not in json.loads((tmp_path / local.REFERENCE).read_text())
    assert local.open_local(tmp_path, "cpu").model.dtype == torch.bfloat16
    assert plain.key != quantized.key
    assert replace(quantized.source, quantized=None) == plain.source


@pytest.mark.usefixtures("_without_bitsandbytes")
def test_missing_package_is_named_with_its_extra_before_anything_runs_and_where_a_stored_base_is_loaded(mine, tmp_path):
    quantized = LocalModel(path=ModelFolder.parse(str(mine)), dtype=Precision.FLOAT32, quantized=Quantization.NF4)
    quantized.write(tmp_path)

    (problem,) = quantized.preflight()

    assert problem.path == "model.source.quantized"
    assert "pip install 'harness[quantized]'" in problem.text
    assert replace(quantized, quantized=None).preflight() == []
    with (
        pytest.raises(ModelError, match=r"pip install 'harness\[quantized\]'"),
        loaded_model(ModelRef(base_key="k", base=tmp_path), {}),
    ):
        pass


def test_bytes_are_four_bits_with_the_magnitudes_of_blocks_in_layers_and_the_dtype_outside(mine):
    # Two layers of 2 x 32 x 32, 2 x 16 x 32 and 3 x 64 x 32 entries; embeddings and head of 64 x 32; five norms of 32.
    inside, outside = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32), 2 * 64 * 32 + 5 * 32
    saved = SavedModel(mine)

    assert saved.bytes(Precision.BFLOAT16) == 2 * (inside + outside)
    # 18,432 entries: 9,216 bytes, 288 magnitudes of a byte, 288 / 256 of four bytes.
    assert saved.bytes(Precision.BFLOAT16, Quantization.NF4) == 9216 + 288 + 5 + 2 * outside


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (
            [
                "defense=sn_tune",
                "finetune.adapter=double",
                "+align.adapter.variant=dora",
                "evaluation.decoding.engine=vllm",
            ],
            {
                "defense.align": "norms of their columns",
                "finetune.adapter": "Set `finetune.adapter=single`",
                "align.adapter.variant": "norms of the rows",
                "evaluation.decoding.engine": "without quantizing it",
            },
        ),
        (
            ["align.adapter=full", "finetune.adapter=double", "+finetune.fresh=full"],
            {"align.adapter": "cannot be trained", "finetune.fresh": "cannot be trained"},
        ),
        (["defense=salora", "finetune.adapter=double"], {"defense.finetune": "main directions"}),
        (["attack=ablation", "finetune.adapter=single"], {"tamper": "changes its matrices"}),
        (["fuse=moe", "finetune.adapter=single"], {"fuse": "shapes of their matrices"}),
    ],
)
def test_what_needs_the_matrices_of_the_base_is_refused_with_the_reason(mine, overrides, refused):
    with pytest.raises(ConfigError) as error:
        cell_of(mine, NF4, *overrides)

    found = {problem.path: problem.text for problem in error.value.problems}
    assert all(reason in found[path] for path, reason in refused.items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune.adapter=single", "defense=booster"],
        ["align.adapter=none", "finetune.adapter=double", "+finetune.fresh={rank: 4}"],
        ["finetune.adapter=double", "+finetune.fresh=none"],
    ],
)
def test_adapters_on_the_base_are_not_refused(mine, overrides):
    assert cell_of(mine, NF4, *overrides).stages["base"].source.quantized is Quantization.NF4


def test_plan_lists_the_base_once_with_its_bytes_and_refuses_to_shard_it(mine):
    stages = Plan.of(cell_of(mine, NF4, "finetune.adapter=single").leaves).stages
    whole, sharded = (
        Slurm(resources={"default": ONE, "align": replace(ONE, processes=2, sharding=sharding)})
        for sharding in ("ddp", "fsdp")
    )

    # As above, with float32 outside of the layers.
    assert quantized_bases(stages) == [QuantizedBase("local_model", "nf4", 9216 + 288 + 5 + 4 * (2 * 64 * 32 + 5 * 32))]
    assert quantized_bases([cell_of(mine, "finetune=none").stages["base"]]) == []
    check_quantized_bases(stages, whole)
    with pytest.raises(ConfigError, match=r"`cluster.resources.align.sharding`: `fsdp` cannot shard"):
        check_quantized_bases(stages, sharded)
