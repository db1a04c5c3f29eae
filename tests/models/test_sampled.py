"""Samples of continuations: the most likely token alone is greedy decoding, and batches do not matter."""

import random

import torch

from harness.generation import sampled
from harness.generation.decoding import Decoding
from harness.generation.sampled import sample
from harness.generation.transformers import generate
from harness.models import adapter


def prompts(count):
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(60)}" for _ in range(rng.randint(1, 12))) for _ in range(count)]


def test_sample_of_the_most_likely_token_is_greedy_decoding(make_model, make_tokenizer, save_adapter):
    model, tokenizer, asked = adapter.load(make_model(), save_adapter("a", seed=1)), make_tokenizer(), prompts(7)
    greedy = generate(model, tokenizer, asked, new_tokens=5, decoding=Decoding())

    found = sample(model, tokenizer, asked, count=3, new_tokens=5, top_k=1, seed=0)

    assert found == [[text.strip()] * 3 for text in greedy]


def test_samples_of_a_prompt_do_not_depend_on_its_batch_and_change_with_the_seed(
    make_model, make_tokenizer, monkeypatch
):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(5)
    together = sample(model, tokenizer, asked, count=4, new_tokens=4, top_k=8, seed=0)
    monkeypatch.setattr(sampled, "BATCH_TOKENS", 1)

    alone = sample(model, tokenizer, asked, count=4, new_tokens=4, top_k=8, seed=0)

    assert alone == together
    assert sample(model, tokenizer, asked, count=4, new_tokens=4, top_k=8, seed=1) != together
    assert len({text for texts in together for text in texts}) > 5


def test_tokens_are_sampled_by_their_probability_among_the_most_likely_ones(make_model, make_tokenizer):
    model, tokenizer = make_model(), make_tokenizer()
    logits = model(torch.tensor([tokenizer("w1 w2")["input_ids"]])).logits[0, -1]
    likely = logits.topk(2)
    expected = float(likely.values.softmax(0)[0])

    (found,) = sample(model, tokenizer, ["w1 w2"], count=400, new_tokens=1, top_k=2, seed=0)

    first, second = (tokenizer.decode([token], skip_special_tokens=True) for token in likely.indices)
    assert set(found) == {first, second}
    # Four standard deviations of a share of 400.
    assert abs(found.count(first) / 400 - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5
