"""An adapter on a head that is the input embeddings cannot be merged; that is known before anything runs."""

import json

import huggingface_hub
import pytest
from composed import compose
from transformers import LlamaForCausalLM

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.errors import DataError, ModelError
from harness.models.adapter import Lora
from harness.models.head import unmergeable
from harness.models.hub import HubModel
from harness.models.merge import merge

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADVICE = r"Remove `lm_head` from `align.adapter.targets`, or set `finetune.adapter=single`"


@pytest.mark.parametrize(
    ("targets", "protocol", "refused"),
    [
        ("[q_proj,lm_head]", "double", True),
        ("[lm_head]", "double", True),
        ("[q_proj,lm_head]", "single", False),
        ("[q_proj]", "double", False),
    ],
)
def test_tied_head_is_refused_before_anything_runs(tmp_path, targets, protocol, refused):
    (cell,) = cells_of(compose([f"align.adapter.targets={targets}", f"finetune.adapter={protocol}"]))
    plan, store = Plan.of(cell.leaves), Store(tmp_path)

    if refused:
        with pytest.raises(DataError, match=ADVICE):
            plan.preflight(store)
    else:
        plan.preflight(store)


@pytest.fixture
def in_cache(tmp_path, make_model, make_tokenizer, monkeypatch):
    """Put a model into the Hub's cache whose configuration says something of its head, or nothing."""

    def put(tied, said):
        make_model(tie_word_embeddings=tied).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "config.json").read_text())
        settings = {name: value for name, value in settings.items() if name != "tie_word_embeddings"}
        settings |= {} if said is None else {"tie_word_embeddings": said}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, file, **__: str(tmp_path / file))
        return HubModel(repo="here/model", revision=COMMIT)

    return put


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("tied", [True, False])
def test_hub_model_knows_its_head_by_what_it_says_or_stores(in_cache, tied, said):
    source = in_cache(tied, said)

    assert source.ties_head() is (tied if said is None else said)
    assert source.at_hand()
    assert bool(unmergeable(source, ["lm_head"])) is source.ties_head()


def test_hub_model_that_is_not_here_is_not_refused(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    source = HubModel(repo="here/model", revision=COMMIT)

    assert source.ties_head() is None
    assert not source.at_hand()
    assert unmergeable(source, ["lm_head"]) == []
    assert HubModel(repo="here/model").ties_head() is None


def test_source_that_says_nothing_is_not_refused():
    assert unmergeable(object(), ["lm_head"]) == []


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_merge_into_a_tied_head_gives_the_same_advice(make_model, save_adapter):
    lora = Lora(rank=4, targets=("q_proj", "lm_head"))
    folder = save_adapter("head", 1, lora, tie_word_embeddings=True)
    model = make_model(tie_word_embeddings=True)
    before = {name: value.clone() for name, value in model.named_parameters()}

    with pytest.raises(ModelError, match=ADVICE):
        merge(model, folder)

    assert isinstance(model, LlamaForCausalLM)
    assert all(value.equal(before[name]) for name, value in model.named_parameters())


def test_adapter_on_a_head_of_its_own_is_merged(make_model, save_adapter):
    lora = Lora(rank=4, targets=("q_proj", "lm_head"))
    model = make_model(tie_word_embeddings=False)
    before = model.lm_head.weight.clone()

    merge(model, save_adapter("head", 1, lora, tie_word_embeddings=False))

    assert not model.lm_head.weight.equal(before)
