"""RepNoise against its closed formulas, on a Llama of two layers, with plain autograd and loops; and parts by hand."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.batches import Pair, Pool, RoleBatches
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.repnoise import RepNoise, loss
from harness.defenses.repnoise.loss import differing_positions
from harness.defenses.repnoise.mmd import squared_mmd
from harness.training.learner import CausalLearner

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13, 14]]
HARMFUL = [[20, 21, 22, 2], [23, 24, 2], [25, 26, 27, 28, 2]]
REFUSALS = [[30, 21, 2], [31, 32, 33, 34, 2], [25, 36, 2]]
APART = [[3, 5, 6], [4, 5, 6], [4, 5, 6, 7]]
"""Where the harmful answers differ from the refusals of their prompts: token 21 and token 25 are in both."""


def encoded(prompt, answer):
    return Encoded(prompt + answer, [-100] * len(prompt) + answer)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(config), lora).train()


def drawn():
    pool = Pool(
        [encoded(*pair) for pair in zip(PROMPTS, HARMFUL, strict=True)],
        3,
        [encoded(*pair) for pair in zip(PROMPTS, REFUSALS, strict=True)],
    )
    return RoleBatches({Role.HARMFUL: pool}, pad_id=0, seed=1)


def alignment():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 40, (4, 9), generator=generator)
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def kernel_by_hand(one, other, bandwidth):
    distance = ((one - other) ** 2).sum()
    return sum(torch.exp(-distance / (bandwidth * 2.0**power)) for power in range(-2, 3))


def mmd_by_hand(ours, noise):
    joint = [*ours, *noise]
    pairs = [(a, b) for a in range(len(joint)) for b in range(len(joint)) if a != b]
    bandwidth = sum(((joint[a] - joint[b]) ** 2).sum().item() for a, b in pairs) / len(pairs)

    def mean(left, right):
        terms = [kernel_by_hand(one, other, bandwidth) for one in left for other in right]
        return sum(terms) / len(terms)

    return mean(ours, ours) + mean(noise, noise) - mean(ours, noise) - mean(noise, ours)


def loss_by_formula(model, batch, harmful, masks, noise, *, alpha, beta):
    """Return ``CE(x) + beta mean_l MMD^2 - alpha log(1 + J)`` and ``J``, row by row and position by position."""
    base = model.get_base_model()
    features = []
    hooks = [layer.mlp.register_forward_hook(lambda _m, _i, out: features.append(out)) for layer in base.model.layers]
    entered = []
    hooks += [
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs: entered.append((args or [kwargs["hidden_states"]])[0]), with_kwargs=True
        )
        for layer in base.model.layers
    ]
    logits = model(input_ids=harmful["input_ids"], attention_mask=harmful["attention_mask"]).logits
    for hook in hooks:
        hook.remove()
    distances = []
    for place, feature in enumerate(features):
        ours, other = [], []
        for row, positions in enumerate(masks):
            mask = torch.zeros(feature.shape[1], 1)
            mask[positions] = 1
            ours.append((feature[row] * mask).flatten())
            other.append((noise[place, row] * mask).flatten())
        distances.append(mmd_by_hand(ours, other))
    means = []
    for given in [logits, *(base.lm_head(base.model.norm(state)) for state in entered)]:
        terms = [
            -torch.log_softmax(given[row, position - 1], dim=-1)[harmful["input_ids"][row, position]]
            for row, positions in enumerate(masks)
            for position in positions
        ]
        means.append(sum(terms) / len(terms))
    layered = sum(means) / len(means)
    total = model(**batch).loss + beta * sum(distances) / len(distances) - alpha * torch.log(1 + layered)
    return total, {
        "harmful_loss": means[0],
        "harmful_layer_loss": layered,
        "noise_distance": sum(distances) / len(distances),
    }


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.0), (0.0, 2.0), (0.7, 2.0)])
def test_repnoise_step_writes_the_gradient_of_its_formula(alpha, beta, monkeypatch):
    torch.manual_seed(5)
    noise = torch.randn(2, 3, 8, 16)
    monkeypatch.setattr(loss, "gaussian", lambda positions, **_: noise * positions[:, :, None])
    model = llama()
    trainables = [parameter for parameter in model.parameters() if parameter.requires_grad]
    harmful = drawn().next(Role.HARMFUL)
    order = [PROMPTS.index(row[: 4 if row[3] == 11 else 3]) for row in harmful["input_ids"].tolist()]
    expected, parts = loss_by_formula(
        model, alignment(), harmful, [APART[place] for place in order], noise, alpha=alpha, beta=beta
    )
    gradient = torch.autograd.grad(expected, trainables)
    step = RepNoise(alpha=alpha, beta=beta).start(CausalLearner(model), drawn(), 1)

    metrics = step.backward(alignment())

    for ours, theirs in zip(trainables, gradient, strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) + 1e-9)
    assert {name: float(metrics[name]) for name in parts} == pytest.approx(
        {name: float(value) for name, value in parts.items()}, rel=1e-4
    )
    assert float(metrics["loss"]) == pytest.approx(float(model(**alignment()).loss), rel=1e-5)


def test_squared_mmd_of_two_points_is_the_number_computed_by_hand():
    # One point each, at distance 2: squared distance 4, which is also the bandwidth.
    across = sum(math.exp(-4 / (4 * scale)) for scale in (0.25, 0.5, 1, 2, 4))

    found = squared_mmd(torch.tensor([[0.0]]), torch.tensor([[2.0]]))

    assert float(found) == pytest.approx(5 + 5 - 2 * across)


def test_squared_mmd_of_a_sample_with_itself_is_zero():
    sample = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))

    assert float(squared_mmd(sample, sample)) == pytest.approx(0.0, abs=1e-6)


def test_positions_apart_are_those_of_the_answer_that_the_refusal_does_not_have():
    batches = drawn()
    pair = batches.pair(Role.HARMFUL)

    found = differing_positions(pair.harmful, pair.refusal)

    for ids, positions in zip(pair.harmful["input_ids"].tolist(), found, strict=True):
        place = next(place for place, prompt in enumerate(PROMPTS) if ids[: len(prompt)] == prompt)
        assert positions.nonzero().flatten().tolist() == APART[place]


def test_positions_apart_from_a_batch_of_fewer_rows_are_none_in_the_others():
    pair = drawn().pair(Role.HARMFUL)
    shorter = {name: tensor[:2] for name, tensor in pair.refusal.items()}
    filler = {"labels": torch.tensor([[-100]]), "input_ids": torch.tensor([[0]]), "attention_mask": torch.tensor([[1]])}

    assert differing_positions(pair.harmful, shorter).any(dim=1).tolist() == [True, True, False]
    assert not differing_positions(pair.harmful, filler).any()


def test_repnoise_with_random_pairing_compares_with_the_alignment_batch_prompts_included(monkeypatch):
    seen = []
    monkeypatch.setattr(loss.HarmfulLoss, "gradient", lambda self, harmful, positions, seed: seen.append(positions))
    (need,) = RepNoise(pairing="random").needs
    step = RepNoise(pairing="random").start(CausalLearner(llama()), drawn(), 1)

    with pytest.raises(AttributeError):
        step.backward(alignment())

    harmful = drawn().next(Role.HARMFUL)
    assert not need.paired
    assert seen[0].sum() >= harmful["attention_mask"].sum() - 3, "nearly everything differs"
    assert not (seen[0] & (harmful["attention_mask"] == 0)).any()


def test_repnoise_needs_pairs():
    (need,) = RepNoise(harmful_rows=50, harmful_batch_size=5).needs

    assert (need.role, need.rows, need.batch_size, need.paired) == (Role.HARMFUL, 50, 5, True)


def test_repnoise_noise_changes_at_every_step_and_continues_after_a_resumption(monkeypatch):
    seeds = []
    real = loss.gaussian
    monkeypatch.setattr(loss, "gaussian", lambda *a, seed, **k: (seeds.append(seed), real(*a, seed=seed, **k))[1])
    learner = CausalLearner(llama())
    step = RepNoise().start(learner, drawn(), 1)
    step.backward(alignment())
    state = step.state_dict()
    step.backward(alignment())
    resumed = RepNoise().start(learner, drawn(), 1)
    resumed.load_state_dict(state)

    resumed.backward(alignment())

    assert seeds[0] != seeds[1] == seeds[2]


def test_pair_of_batches_has_the_same_prompts_row_by_row():
    pair = drawn().pair(Role.HARMFUL)

    assert isinstance(pair, Pair)
    for harmful, refusal in zip(pair.harmful["input_ids"].tolist(), pair.refusal["input_ids"].tolist(), strict=True):
        prompt = next(prompt for prompt in PROMPTS if harmful[: len(prompt)] == prompt)
        assert refusal[: len(prompt)] == prompt
        assert harmful != refusal


def test_repnoise_settings_out_of_range_are_all_reported():
    settings = RepNoise(alpha=-1, beta=-1, harmful_rows=0, harmful_batch_size=0)

    assert [problem.path for problem in settings.problems()] == [
        "alpha",
        "beta",
        "harmful_rows",
        "harmful_batch_size",
    ]


def test_published_losses_require_random_pairs():
    (problem,) = RepNoise(losses="published").problems()

    assert problem.path == "losses"
    assert "`pairing: random`" in problem.text
    assert not RepNoise(losses="published", pairing="random").problems()
