"""Passes of a decoder that are captured and replayed. A stand-in runs again what a GPU would replay."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from harness.models.adapter import Lora, attach
from harness.models.captured import EAGER_PASSES, captured_decoder
from harness.models.decoder import layers
from harness.models.recompute import recomputed

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def again(run):
    run()
    return run


def refused(run):
    raise RuntimeError("operation not permitted when stream is capturing\nwith more lines")


def build(config=None, **lora):
    torch.manual_seed(0)
    model = attach(AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZE)), Lora(rank=2, **lora), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    return model


def ids(rows=3, seed=0):
    return torch.randint(1, 50, (rows, 8), generator=torch.Generator().manual_seed(seed))


def loss(model, tokens):
    return model(input_ids=tokens, use_cache=False).logits.float().square().mean()


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradient(model, tokens):
    return torch.autograd.grad(loss(model, tokens), trained(model))


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZE),
        LlamaConfig(**SIZE, num_key_value_heads=1, tie_word_embeddings=True),
        Gemma2Config(**SIZE, num_key_value_heads=1, head_dim=8, attn_implementation="eager"),
        Qwen2Config(**SIZE, num_key_value_heads=2),
    ],
    ids=["llama", "grouped and tied", "gemma2", "qwen2"],
)
def test_gradients_of_replayed_passes_are_those_of_the_model(config):
    model = build(config)
    batches = [ids(seed=seed) for seed in range(EAGER_PASSES + 3)]
    expected = [gradient(model, tokens) for tokens in batches]

    with captured_decoder(model, again, {3}) as decoder:
        found = [gradient(model, tokens) for tokens in batches]

    assert (decoder.graphs, decoder.replayed) == (1, 3)
    # Compared after the last pass: no gradient may be a view of memory that a later pass overwrites.
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)


def test_passes_through_a_dora_adapter_are_replayed_too():
    model = build(targets="all-linear", variant="dora")
    batches = [ids(seed=seed) for seed in range(EAGER_PASSES + 2)]
    expected = [gradient(model, tokens) for tokens in batches]

    with captured_decoder(model, again, {3}) as decoder:
        found = [gradient(model, tokens) for tokens in batches]

    assert decoder.replayed == 2
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)


@pytest.fixture
def warm():
    """Return a model whose next pass over three rows is replayed, its decoder, and a context to leave."""
    model = build()
    with captured_decoder(model, again, {3}) as decoder:
        for seed in range(EAGER_PASSES + 1):
            gradient(model, ids(seed=seed))
        assert decoder.replayed == 1
        yield model, decoder


def test_weights_may_move_between_passes(warm):
    model, decoder = warm
    with torch.no_grad():
        for parameter in trained(model):
            parameter.add_(0.1)

    found = gradient(model, ids(seed=9))

    assert decoder.replayed == 2
    with torch.no_grad():
        fresh = build()
        for parameter in trained(fresh):
            parameter.add_(0.1)
    same(found, gradient(fresh, ids(seed=9)))


def test_second_pass_before_the_first_has_its_gradient_runs_as_it_is(warm):
    model, decoder = warm
    one, other = ids(seed=5), ids(seed=6)

    found = torch.autograd.grad(loss(model, one) + 2 * loss(model, other), trained(model))

    assert decoder.replayed == 2
    fresh = build()
    same(found, torch.autograd.grad(loss(fresh, one) + 2 * loss(fresh, other), trained(fresh)))


def test_pass_without_its_backward_pass_blocks_nothing(warm):
    model, decoder = warm

    loss(model, ids())
    gradient(model, ids())

    assert decoder.replayed == 3


def test_captured_pass_has_one_backward_pass(warm):
    model, _ = warm
    once = loss(model, ids())
    torch.autograd.grad(once, trained(model), retain_graph=True)

    with pytest.raises(RuntimeError, match="one backward pass"):
        torch.autograd.grad(once, trained(model))


def test_hooks_inside_are_called_and_those_outside_too(warm):
    model, decoder = warm
    seen = []
    handles = [
        layers(model)[0].register_forward_hook(lambda *_: seen.append("inside")),
        model.get_decoder().register_forward_hook(lambda *_: seen.append("outside")),
    ]

    gradient(model, ids())
    handles[0].remove()
    gradient(model, ids())

    assert seen == ["inside", "outside", "outside"]
    assert decoder.replayed == 2


def test_hook_on_a_backward_pass_inside_is_called(warm):
    model, decoder = warm
    seen = []
    handle = layers(model)[0].register_full_backward_hook(lambda *_: seen.append("inside"))

    gradient(model, ids())
    handle.remove()
    gradient(model, ids())

    assert seen == ["inside"]
    assert decoder.replayed == 2


def test_layers_that_are_recomputed_run_as_they_are(warm):
    model, decoder = warm

    with recomputed(layers(model)):
        gradient(model, ids())

    assert decoder.replayed == 1


def test_what_has_gradients_is_part_of_the_kind(warm):
    model, decoder = warm
    frozen, *rest = trained(model)
    frozen.requires_grad_(False)

    found = [torch.autograd.grad(loss(model, ids()), rest) for _ in range(EAGER_PASSES + 1)]

    assert (decoder.graphs, decoder.replayed) == (2, 2)
    same(found[-1], found[0])


def test_parameter_that_is_free_later_has_its_gradient():
    model = build()
    first, *_ = trained(model)
    first.requires_grad_(False)

    with captured_decoder(model, again, {3}) as decoder:
        for _ in range(EAGER_PASSES + 1):
            gradient(model, ids())
        first.requires_grad_(True)
        found = [gradient(model, ids()) for _ in range(EAGER_PASSES + 1)]

    assert decoder.replayed == 2
    same(found[-1], gradient(build(), ids()))


def test_passes_without_gradients_are_captured_too(warm):
    model, decoder = warm

    with torch.no_grad():
        found = [model(input_ids=ids(seed=seed), use_cache=False).logits for seed in range(EAGER_PASSES + 2)]
        expected = build()(input_ids=ids(seed=EAGER_PASSES), use_cache=False).logits

    assert (decoder.graphs, decoder.replayed) == (2, 3)
    torch.testing.assert_close(found[-2], expected)


@pytest.mark.parametrize("rows", [2, 4])
def test_unusual_numbers_of_rows_and_whatever_has_a_mask_run_as_they_are(warm, rows):
    model, decoder = warm

    for _ in range(EAGER_PASSES + 1):
        gradient(model, ids(rows))
        model(input_ids=ids(), attention_mask=torch.ones(3, 8), use_cache=False)

    assert (decoder.graphs, decoder.replayed) == (1, 1)


def test_model_that_cannot_be_captured_trains_as_it_is():
    model = build()
    with captured_decoder(model, refused, {3}) as decoder:
        found = [gradient(model, ids()) for _ in range(EAGER_PASSES + 2)]

    assert decoder.trouble == "a pass cannot be captured (operation not permitted when stream is capturing)"
    same(found[-1], gradient(build(), ids()))


def test_decoder_is_left_as_it_was():
    model = build()

    with pytest.raises(KeyError, match="inside"), captured_decoder(model, again, {3}):
        raise KeyError("inside")

    assert "forward" not in model.get_decoder().__dict__


def test_products_under_autocast_are_those_of_the_model():
    model, batches = build(), [ids(seed=seed) for seed in range(EAGER_PASSES + 2)]
    with captured_decoder(model, again, {3}) as decoder, torch.autocast("cpu", dtype=torch.bfloat16):
        found = [gradient(model, tokens) for tokens in batches]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = [gradient(build(), tokens) for tokens in batches]

    assert decoder.replayed == 2
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)
