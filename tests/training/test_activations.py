import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_learner import adapted, batch, llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from harness.errors import ModelError
from harness.mechanisms.activation_perturbation import ActivationPerturbation, attention_blocks
from harness.training.learner import CausalLearner


def gpt2():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64)
    return GPT2LMHeadModel(config), ["c_attn"], "GPT2Attention"


def neox():
    config = GPTNeoXConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=61
    )
    return GPTNeoXForCausalLM(config), ["query_key_value"], "GPTNeoXAttention"


def opt():
    config = OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=61, word_embed_proj_dim=32
    )
    return OPTForCausalLM(config), ["q_proj"], "OPTAttention"


def hooks_in(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("make", [gpt2, neox, opt])
def test_attention_blocks_are_found_by_place_in_any_decoder(make):
    base, targets, kind = make()
    model = get_peft_model(base, LoraConfig(target_modules=targets))

    assert [type(block).__name__ for block in attention_blocks(model)] == [kind, kind]


@pytest.mark.parametrize("make", [gpt2, neox, opt])
def test_perturbation_hurts_any_decoder_and_leaves_no_hook(make):
    torch.manual_seed(0)
    base, targets, _ = make()
    model = get_peft_model(base, LoraConfig(target_modules=targets, init_lora_weights=False)).eval()

    perturbed = ActivationPerturbation(CausalLearner(model), rho=0.5).gradient(batch())

    assert perturbed.metrics["perturbed_loss"] > perturbed.metrics["loss"]
    assert hooks_in(model) == 0


def test_perturbation_has_length_rho_over_all_layers_and_spares_pads():
    model = adapted(llama)
    learner = CausalLearner(model)
    before, after = [], []
    blocks = attention_blocks(model)
    for block in blocks:
        block.o_proj.register_forward_hook(lambda _m, _i, output: before.append(output.detach()))
    perturbation = ActivationPerturbation(learner, rho=0.7)
    # The input of the layer norm behind the attention is residual + output; with the residual removed, the output.
    residuals = []
    for layer in model.get_decoder().layers:
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs: residuals.append((args or [kwargs["hidden_states"]])[0].detach()), with_kwargs=True
        )
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: after.append(args[0].detach()))

    perturbation.gradient(batch())

    shifts = [total - residual - raw for total, residual, raw in zip(after, residuals, before, strict=True)]
    first_pass, second_pass = shifts[:2], shifts[2:]
    assert all(float(shift.abs().max()) < 1e-6 for shift in first_pass)
    assert float(torch.stack(second_pass).norm()) == pytest.approx(0.7, rel=1e-3)
    assert float(torch.stack(second_pass)[:, 1, 9:].abs().max()) < 1e-6, "no loss depends on pads"


def test_perturbation_of_some_layers_has_length_rho_and_leaves_the_others_alone():
    model = adapted(llama)
    blocks = attention_blocks(model)
    entered = []
    for layer in model.get_decoder().layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: entered.append(args[0].detach()))

    ActivationPerturbation(CausalLearner(model), rho=0.7).gradient(batch(), layers=[1])

    assert len(blocks) == 2
    (first, second), (shifted_first, shifted_second) = entered[:2], entered[2:]
    assert torch.equal(first, shifted_first)
    assert float((shifted_second - second).norm()) == pytest.approx(0.7, rel=1e-3)


def test_norms_of_layers_are_those_of_their_gradients():
    model = adapted(llama)
    outputs = []
    for block in attention_blocks(model):
        block.register_forward_hook(lambda _m, _i, output: outputs.append(output[0]))

    norms = ActivationPerturbation(CausalLearner(model), rho=0.7).norms(batch())

    outputs.clear()
    expected = torch.autograd.grad(model(**batch()).loss, outputs)
    torch.testing.assert_close(norms, torch.stack([part.norm() for part in expected]))


def test_perturbation_with_recomputed_activations_gives_the_same_gradient():
    plain, recomputing = adapted(llama).train(), adapted(llama).train()
    recomputing.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})

    expected = ActivationPerturbation(CausalLearner(plain), rho=0.5).gradient(batch())
    perturbed = ActivationPerturbation(CausalLearner(recomputing), rho=0.5).gradient(batch())

    torch.testing.assert_close(perturbed.metrics, expected.metrics)
    for ours, theirs in zip(perturbed.gradient, expected.gradient, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_perturbation_removes_its_hooks_after_an_error():
    model = adapted(llama)
    perturbation = ActivationPerturbation(CausalLearner(model), rho=0.5)

    with pytest.raises(KeyError):
        perturbation.gradient({"labels": batch()["labels"]})

    assert hooks_in(model) == 0


def test_perturbation_without_gradient_at_any_attention_is_refused():
    model = adapted(llama, target_modules=["lm_head"])
    perturbation = ActivationPerturbation(CausalLearner(model), rho=0.5)

    with pytest.raises(ModelError, match="no gradient reached an attention output"):
        perturbation.gradient(batch())


def test_attention_of_unknown_name_is_refused_with_what_was_found():
    model = adapted(llama)
    for layer in model.get_decoder().layers:
        layer.mixer = layer.self_attn
        del layer.self_attn

    with pytest.raises(ModelError, match=r"layer 0 of LlamaModel has 0 attention blocks.*mixer \(LlamaAttention\)"):
        attention_blocks(model)


def test_decoder_without_layers_is_refused_with_what_was_found():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)

        def get_decoder(self):
            return self

    with pytest.raises(ModelError, match=r"0 lists of layers; expected one. Found: body \(Linear\)"):
        attention_blocks(Flat())
