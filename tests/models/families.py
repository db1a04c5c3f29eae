"""Small random models of the families whose kernels are fused, and their gradients."""

from statistics import geometric_mean

import torch
from transformers import AutoModelForCausalLM

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}

BIAS_OF_KEYS = 1e-3
"""Share of the largest gradient below which that of a bias of keys, which changes nothing, is rounding."""


def family_model(config, dtype=torch.float32):
    """Return a model with 3 layers, 4 heads of queries and 2 of keys, whose norms and biases do something."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZE)).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):
                weight.add_(0.3 * torch.randn(weight.shape).to(dtype))
    return model


def passed(model, autocast=False, seed=0):
    """Return the logits of a pass over random tokens, and the gradients of all parameters that are trained."""
    model.zero_grad()
    ids = torch.randint(model.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(seed))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, use_cache=False).logits
    logits.float().logsumexp(-1).mean().backward()
    return logits.detach(), [
        torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for weight in model.parameters()
        if weight.requires_grad
    ]


def relative_error(found, truth):
    """Return ``||found - truth|| / ||truth||`` over all tensors together."""
    apart = sum(float((ours.float() - theirs).square().sum()) for ours, theirs in zip(found, truth, strict=True))
    return (apart / sum(float(theirs.square().sum()) for theirs in truth)) ** 0.5


def same_under(switch, model, *, floor=0.0):
    """Assert that a pass under a switch is the same up to rounding, and return what the switch gives.

    Args:
        switch: makes a context from a model.
        model: the model.
        floor: share of the largest gradient below which one is rounding, see ``BIAS_OF_KEYS``.
    """
    logits, gradients = passed(model)
    with switch(model) as given:
        found, found_gradients = passed(model)
    assert_same_pass((found, found_gradients), (logits, gradients), floor=floor)
    return given


def assert_same_pass(found, expected, *, floor=0.0):
    """Assert that the logits and each gradient of two passes are the same up to rounding."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    least = floor * max(float(theirs.norm()) for theirs in expected[1])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * max(float(theirs.norm()), least)


def assert_no_further(model, exact, switch, autocast):
    """Assert that passes under a switch are as far from those of a float32 model as passes without.

    Errors of single batches differ by up to a factor of three either way, and where gradients nearly cancel they are
    large: the geometric mean of the ratios over forty batches counts.
    """
    exact.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    ratios = []
    for seed in range(40):
        _, truth = passed(exact, seed=seed)
        logits, plain = passed(model, autocast, seed)
        with switch(model):
            found, ours = passed(model, autocast, seed)
        assert found.dtype == logits.dtype
        assert [part.dtype for part in ours] == [part.dtype for part in plain]
        ratios.append(relative_error(ours, truth) / relative_error(plain, truth))
    assert 0 < geometric_mean(ratios) <= 1.1
