"""A model in a folder of this machine is identified by its content, and only safetensors are loaded."""

import json
import os
import shutil

import pytest
import torch
from composed import compose
from safetensors.torch import load_file, save_file

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.spec import describe, rebuild
from harness.engine.store import Store
from harness.errors import ConfigError, ModelError
from harness.local.executor import LocalExecutor
from harness.models import local
from harness.models.loading import ModelRef, loaded_model
from harness.models.local import LocalModel, ModelFolder, content_of
from harness.models.saved import Attention, Precision
from harness.stages.grade import read_summary
from harness.sweep.chat_templates import check_chat_templates

pytestmark = pytest.mark.usefixtures("cache")


def source(folder, **changes):
    return LocalModel(path=ModelFolder.parse(str(folder)), **changes)


def alter(folder, *, stamp):
    """Change one weight and nothing about the size of the file."""
    # Cloned, because what is loaded is mapped from the file that is overwritten.
    weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    os.utime(folder / "model.safetensors", (stamp, stamp))


def base_of(folder, *overrides):
    (cell,) = cells_of(compose(["model=local", f"model.source.path={folder}", *overrides]))
    return cell.stages["base"], cell


@pytest.mark.slow
def test_key_is_of_the_content_and_not_of_the_path(mine, tmp_path):
    copy = shutil.copytree(mine, tmp_path / "copy")
    before = base_of(mine)[0].key
    (copy / "README.md").write_text("not loaded")
    of_the_copy = base_of(copy)[0].key
    alter(copy, stamp=1_000_000_001)
    altered = base_of(copy)[0].key

    assert before == of_the_copy
    assert altered != before
    assert base_of(mine, "model.source.dtype=float32")[0].key != before


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_every_file_that_is_loaded_counts(mine, file):
    before = content_of(mine)
    (mine / file).write_text((mine / file).read_text() + " ")

    assert content_of(mine) != before


def test_spec_keeps_the_path_so_that_a_job_finds_the_model(mine):
    base, cell = base_of(mine)
    known = {stage.key: stage for stage in Plan.of(cell.leaves).stages}

    restored = rebuild(json.loads(json.dumps(describe(base))), known.__getitem__)

    assert restored.key == base.key
    assert restored.source.path.path == str(mine)


def test_base_is_a_reference_that_opens_as_asked(mine, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    asked = source(mine, dtype=Precision.BFLOAT16, attention=Attention.EAGER, gradient_checkpointing=True)

    facts = asked.write(out)
    with loaded_model(ModelRef(base_key="k", base=out), {}) as loaded:
        model = loaded.model

    expected = load_file(mine / "model.safetensors")["model.embed_tokens.weight"].to(torch.bfloat16)
    assert [path.name for path in out.iterdir()] == [local.REFERENCE]
    assert local.files_of_local(out) == (mine, Precision.BFLOAT16)
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    assert model.model.layers[0].gradient_checkpointing
    assert torch.equal(model.model.embed_tokens.weight, expected)


def test_folder_that_changed_after_planning_is_neither_written_nor_opened(mine, tmp_path):
    asked = source(mine)
    assert asked.preflight() == []
    asked.write(tmp_path)
    alter(mine, stamp=1_000_000_001)

    assert [problem.path for problem in asked.preflight()] == ["model.source.path"]
    for use in (lambda: asked.write(tmp_path), lambda: local.open_local(tmp_path, "cpu")):
        with pytest.raises(ModelError, match="has changed since this run was planned"):
            use()
    assert asked.ties_head() is None


def test_unchanged_file_is_hashed_once(mine):
    before = content_of(mine)
    alter(mine, stamp=1_000_000_000)  # Same size, same time stamp: taken for the file that was hashed.
    taken_as_known = content_of(mine)
    os.utime(mine / "model.safetensors", (1_000_000_001, 1_000_000_001))

    assert taken_as_known == before
    assert content_of(mine) != before


def test_file_that_was_just_written_is_hashed_again(mine):
    now = (mine.stat().st_mtime_ns, mine.stat().st_mtime_ns)
    os.utime(mine / "model.safetensors", ns=(now[0] + 60 * 10**9,) * 2)
    before, stamp = content_of(mine), (mine / "model.safetensors").stat().st_mtime_ns
    alter(mine, stamp=1_000_000_001)
    os.utime(mine / "model.safetensors", ns=(stamp, stamp))

    assert content_of(mine) != before


CELL = (
    "model.source.dtype=float32",
    "model.encoding.template=chat",
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
CHATML = (
    "{% for message in messages %}{{ '<s> ' + message.role + ' ' + message.content + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


@pytest.mark.slow
def test_cell_with_the_chat_template_of_a_local_model_runs_to_its_scores(save_base, tmp_path):
    chat = save_base("chat", chat_template=CHATML)
    _, cell = base_of(chat, *CELL, "model.encoding.system=w1")
    store = Store(tmp_path / "store")

    assert LocalExecutor().run(Plan.of(cell.leaves), store).complete

    stages = cell.stages
    facts = store.manifest(stages["finetune"].key).facts
    assert facts["rows"]["by_kind"]["harmful"] == {"sent": 2, "dropped": 0, "cut": 0}
    assert read_summary(store.path(stages["harm"]))["judged"] == 4
    assert stages["harm"].marker is None


def test_chat_template_is_checked_before_anything_runs(save_base):
    """An encoding of the evaluation would otherwise be refused after the training."""
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    cells = {
        name: base_of(save_base(name, **special), *CELL[2:], "evaluation.encoding.template=chat")[1]
        for name, special in (("plain", {}), ("chat", {"chat_template": no_system + CHATML}))
    }
    kind = base_of(cells["chat"].stages["base"].source.path.path, *CELL, "evaluation.encoding.system=w1")[1]

    check_chat_templates(cells["chat"].stages.values())
    check_chat_templates([cells["plain"].stages["finetune"]])
    for cell, reason in (
        (cells["plain"], "no chat template"),
        (kind, r"no system prompt \(System role not supported\)"),
    ):
        with pytest.raises(ModelError, match=reason):
            check_chat_templates(cell.stages.values())


def test_local_model_without_a_chat_template_is_refused_with_the_reason(mine, tmp_path):
    _, cell = base_of(mine, *CELL)

    outcome = LocalExecutor().run(Plan.of([cell.stages["align"]]), Store(tmp_path / "store"))

    (failure,) = outcome.failed.values()
    assert "no chat template" in failure.message


def test_damaged_memory_of_hashes_costs_time_only(mine, tmp_path):
    before = content_of(mine)
    (memory,) = (tmp_path / "cache" / "harness" / "models").iterdir()
    for damage in ("", "[]", '{"config.json": 1}'):
        memory.write_text(damage)

        assert content_of(mine) == before


def test_pickled_weights_are_refused_with_the_reason(mine):
    (mine / "model.safetensors").rename(mine / "pytorch_model.bin")

    with pytest.raises(ConfigError, match=r"`pytorch_model.bin`: such files are pickles.*run any code.*safetensors"):
        base_of(mine)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda folder: (folder / "config.json").unlink(), "no `config.json`"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no `model.safetensors`"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index of the weights"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "part.safetensors"}}'
            ),
            "no `part.safetensors`",
        ),
    ],
)
def test_folder_without_a_model_is_one_clear_error(mine, damage, says):
    damage(mine)

    with pytest.raises(ConfigError, match=says):
        base_of(mine)


@pytest.mark.parametrize(("option", "setting"), [("local", "model.source.path"), ("hub", "model.source.repo")])
def test_option_without_a_model_names_the_setting(option, setting):
    with pytest.raises(ConfigError, match=setting):
        cells_of(compose([f"model={option}"]))
