"""Tokens that are sampled or forced: by hand, and the same in both decoding paths and in batches of any size."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.thoughts import Thoughts
from harness.errors import ModelError
from harness.generation.answers import Path
from harness.generation.decoding import Decoding, Sampling, ThoughtBudget
from harness.generation.token_choice import ForcedAnswer, Rules, TokenChoice, inverted, nucleus
from harness.generation.transformers import answer

LONG = Decoding(max_prompt=100)
END = 2
DEVICE = torch.device("cpu")


def written(rules, wanted, seeds=None):
    """Choose tokens for models that want the tokens of a script, whatever is forced; the last one is repeated."""
    rows = len(wanted)
    choice = TokenChoice(rules, rows=rows, device=DEVICE)
    choice.enter(torch.arange(rows), seeds or [0] * rows)
    found, ended = [[] for _ in wanted], [False] * rows
    for step in range(rules.longest):
        tokens = [script[min(step, len(script) - 1)] for script in wanted]
        logits = torch.nn.functional.one_hot(torch.tensor(tokens), 10).float()
        chosen, last = choice(logits, torch.full((rows,), step))
        for row in range(rows):
            if not ended[row]:
                found[row].append(int(chosen[row]))
                ended[row] = bool(last[row])
    assert all(ended)
    return found


def test_thought_ends_at_its_marker_at_an_end_token_or_with_its_budget():
    thought = ForcedAnswer(budget=3, stops=(END, 5), closing=(5, 6), cut=(5, 6, 7))
    rules = Rules(new_tokens=2, ends=(END,), thought=thought)

    found = written(rules, [[4], [4, 5, 4, 8, END], [END], [4, 4, 4, 5, END], [4, 4, 5, 4, 4, 4]])

    assert found == [
        [
            4,
            4,
            4,
            5,
            6,
            7,
            4,
            4,
        ],  # never stops: exactly the budget, the forced marker and cue, two tokens of answer
        [4, 5, 6, 8, END],  # the marker after one token: its rest is forced, and the answer ends by itself
        [5, 6, END],  # ends at once: the marker takes the place of the end
        [4, 4, 4, 5, 6, 7, END],  # the marker comes when the budget is used up
        [4, 4, 5, 6, 4, 4],
    ]
    assert rules.longest == 3 + 3 + 2
    assert [thought.was_cut(row) for row in found] == [True, False, False, True, False]


def test_budget_of_nothing_forces_the_answer_at_once():
    rules = Rules(new_tokens=1, ends=(), thought=ForcedAnswer(budget=0, stops=(5,), closing=(5,), cut=(5, 7)))

    assert written(rules, [[4], [5]]) == [[5, 7, 4], [5, 7, 5]]


def test_generations_without_a_thought_end_with_an_end_token_or_at_their_length():
    assert written(Rules(new_tokens=3, ends=(END,)), [[4], [4, END], [END]]) == [[4, 4, 4], [4, END], [END]]


def test_step_does_not_wait_for_the_device():
    """On the meta device nothing can be read, as in the capture of a CUDA graph."""
    thought = ForcedAnswer(budget=3, stops=(END, 5), closing=(5, 6), cut=(5, 6, 7))
    rules = Rules(new_tokens=2, ends=(END,), thought=thought, sampling=Sampling(top_p=0.5))
    choice = TokenChoice(rules, rows=4, device=torch.device("meta"))

    chosen, last = choice(torch.empty(4, 10, device="meta"), torch.empty(4, dtype=torch.int64, device="meta"))

    assert (chosen.shape, last.shape, last.dtype) == ((4,), (4,), torch.bool)


def test_sample_is_the_first_token_whose_cumulative_probability_exceeds_the_number():
    probabilities = torch.tensor([[0.5, 0.0, 0.25, 0.25]])
    draws = [0.0, 0.49, 0.5, 0.74, 0.75, 1.0]

    found = [int(inverted(probabilities, torch.tensor([[draw]]))) for draw in draws]

    assert found == [0, 0, 2, 2, 3, 3]
    assert int(inverted(torch.tensor([[0.0, 0.3, 0.0]]), torch.tensor([[1.0]]))) == 1


@pytest.mark.parametrize(
    ("share", "kept"), [(0.4, [0, 0.5, 0]), (0.5, [0, 0.5, 0]), (0.6, [0.375, 0.5, 0]), (1.0, [0.375, 0.5, 0.125])]
)
def test_nucleus_is_the_smallest_set_with_the_share(share, kept):
    assert nucleus(torch.tensor([[0.375, 0.5, 0.125]]), share).tolist() == [kept]


def test_sampled_tokens_follow_the_temperature():
    """With the temperature 1/2, probabilities 1/4 and 3/4 become 1/10 and 9/10."""
    rules = Rules(new_tokens=1, ends=(), sampling=Sampling(temperature=0.5))
    choice = TokenChoice(rules, rows=4000, device=DEVICE)
    choice.enter(torch.arange(4000), list(range(4000)))

    chosen, _ = choice(torch.tensor([0.25, 0.75]).log().expand(4000, 2), torch.zeros(4000, dtype=torch.int64))

    # Four standard errors.
    assert abs(chosen.double().mean().item() - 0.9) < 4 * (0.09 / 4000) ** 0.5


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def asked():
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(60)}" for _ in range(rng.randint(1, 14))) for _ in range(10)]


def everywhere(model, tokenizer, asked, decoding, **given):
    """Decode in both paths and in several batch sizes; return the answers, which are all the same."""
    first, *others = [
        answer(model, tokenizer, asked, decoding=decoding, path=path, batch_size=size, **given)
        for path, sizes in ((Path.PLAIN, (10, 3)), (Path.SLOTS, (10, 3)))
        for size in sizes
    ]
    for other in others:
        assert (other.texts, other.samples) == (first.texts, first.samples)
        assert other.facts.get("forced") == first.facts.get("forced")
    return first


def by_hand(model, tokenizer, prompt, thoughts):
    """Decode a prompt without cache, batch and state on tensors: at most 5 tokens of thought and 3 of answer."""
    word, end = tokenizer.convert_tokens_to_ids, tokenizer.eos_token_id
    prompt, new = [*tokenizer(prompt)["input_ids"], word(thoughts.think)], []

    def wanted():
        return int(model(torch.tensor([prompt + new])).logits[0, -1].argmax())

    while len(new) < 5 and (token := wanted()) not in (end, word(thoughts.answer)):
        new.append(token)
    cut = len(new) == 5
    new += [word(thoughts.answer), *([word(thoughts.final)] if cut else [])]
    while (token := wanted()) != end:
        new.append(token)
        if len(new) - new.index(word(thoughts.answer)) == 4 + cut:
            break
    return tokenizer.decode([word(thoughts.think), *new], skip_special_tokens=True), cut


def test_thought_budgets_hold_in_every_path(model, asked, make_tokenizer):
    tokenizer = make_tokenizer()
    opened = replace(LONG, thought=ThoughtBudget())
    thoughts = Thoughts(think="w1", answer="w2", final="w3")
    free = answer(model, tokenizer, asked, new_tokens=12, decoding=opened, thoughts=thoughts).texts
    common = sorted({word for text in free for word in text.split()[1:]}, key=lambda w: -sum(w in t for t in free))
    tokenizer.eos_token, thoughts = common[1], replace(thoughts, answer=common[0])

    got = everywhere(
        model, tokenizer, asked, replace(LONG, thought=ThoughtBudget(tokens=5)), new_tokens=3, thoughts=thoughts
    )

    expected = [by_hand(model, tokenizer, prompt, thoughts) for prompt in asked]
    assert [" ".join(text.split()) for text in got.texts] == [text for text, _ in expected]
    assert 0 < got.facts["forced"] == sum(cut for _, cut in expected) < len(asked)
    assert len({len(text.split()) for text in got.texts}) > 3


def test_thought_without_a_budget_is_only_opened(model, asked, make_tokenizer):
    tokenizer, thoughts = make_tokenizer(), Thoughts(think="w1", answer="w2", final="w3")

    opened = answer(
        model, tokenizer, asked, new_tokens=5, decoding=replace(LONG, thought=ThoughtBudget()), thoughts=thoughts
    )
    prompted = answer(model, tokenizer, [f"{text} w1" for text in asked], new_tokens=5, decoding=LONG)

    assert [text.removeprefix("w1\n") for text in opened.texts] == prompted.texts
    assert "forced" not in opened.facts


@pytest.mark.parametrize(
    ("answer_marker", "message"),
    [
        ("nothing known", "does not know all tokens"),
        ("w4 w5", "stand for other text"),
        ("</s>", "that end generations"),
    ],
)
def test_marker_that_cannot_end_a_thought_is_refused(model, make_tokenizer, answer_marker, message):
    thoughts, decoding = Thoughts(think="w1", answer=answer_marker), replace(LONG, thought=ThoughtBudget(tokens=3))

    with pytest.raises(ModelError, match=message):
        answer(model, make_tokenizer(), ["w1"], new_tokens=4, decoding=decoding, thoughts=thoughts)


def test_samples_are_the_same_in_every_path_and_differ_by_prompt_sample_and_seed(model, asked, make_tokenizer):
    tokenizer, sampling = make_tokenizer(), Sampling(temperature=0.8, top_p=0.9, seed=3, samples=2)
    asked = [asked[0], *asked[:6]]

    got = everywhere(model, tokenizer, asked, replace(LONG, sampling=sampling), new_tokens=6)
    alone = answer(model, tokenizer, asked[:1], new_tokens=6, decoding=replace(LONG, sampling=sampling))
    other = answer(
        model, tokenizer, asked, new_tokens=6, decoding=replace(LONG, sampling=replace(sampling, seed=4, samples=1))
    )

    assert got.texts == [samples[0] for samples in got.samples]
    assert [len(samples) for samples in got.samples] == [2] * 7
    assert alone.samples == got.samples[:1]
    assert len({*got.samples[0], *got.samples[1], other.texts[0]}) == 5
    assert other.samples is None


def test_cold_samples_are_the_greedy_answers(model, asked, make_tokenizer):
    cold = replace(LONG, sampling=Sampling(temperature=1e-4))

    got = answer(model, make_tokenizer(), asked, new_tokens=6, decoding=cold)

    assert got.texts == answer(model, make_tokenizer(), asked, new_tokens=6, decoding=LONG).texts


def test_settings_out_of_range_are_problems():
    assert [problem.path for problem in Sampling(temperature=0, samples=0).problems()] == ["temperature", "samples"]
    assert [problem.path for problem in Sampling(top_p=1.5).problems()] == ["top_p"]
    assert [problem.path for problem in ThoughtBudget(tokens=-1).problems()] == ["tokens"]
    assert Sampling().problems() == ThoughtBudget(tokens=0).problems() == []
