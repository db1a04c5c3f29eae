"""Which of a model's own weights are trained."""

import pytest
import torch

from harness.engine.build import build
from harness.errors import ConfigError, ModelError
from harness.models.adapter import Lora
from harness.models.trained_weights import TrainedWeights, unfreeze


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("text", "modules"),
    [("full", "all"), ("none", "none"), ("full:mlp", ("mlp",)), ("full:q_proj+mlp", ("q_proj", "mlp"))],
)
def test_texts_of_the_configuration(text, modules):
    assert build(Lora | TrainedWeights, text) == TrainedWeights(modules=modules)


@pytest.mark.parametrize("text", ["fully", "full:", "full:model.norm", "full:a++b", "lora", ""])
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError):
        build(Lora | TrainedWeights, text)


def test_settings_of_an_adapter_are_still_an_adapter():
    assert build(Lora | TrainedWeights, {"rank": 4}) == Lora(rank=4)


def test_order_of_modules_is_not_part_of_the_identity():
    assert TrainedWeights(modules=("b", "a", "b")).ordered() == TrainedWeights(modules=("a", "b"))


def test_all_weights_become_float32_and_trainable(make_model):
    model = make_model().bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    unfreeze(model, TrainedWeights())

    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    assert all(torch.equal(value, before[name].float()) for name, value in model.state_dict().items())


def test_named_modules_alone_are_trained(make_model):
    model = make_model()

    unfreeze(model, TrainedWeights(modules=("o_proj", "mlp")))

    layers = {name.split(".", 3)[3] for name in trainable(model)}
    assert layers == {"self_attn.o_proj.weight", *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))}
    assert len(trainable(model)) == 2 * 4


def test_tied_head_is_trained_with_the_embeddings(make_model):
    model = make_model(tie_word_embeddings=True).bfloat16()

    unfreeze(model, TrainedWeights(modules=("lm_head",)))

    assert trainable(model) == {"model.embed_tokens.weight"}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_module_that_does_not_occur_is_refused(make_model):
    with pytest.raises(ModelError, match="no module with weights named `w_proj`"):
        unfreeze(make_model(), TrainedWeights(modules=("w_proj",)))
