import logging
import random
import warnings

import pytest
import torch
from tokenizers import processors

from harness.corpora.encode import IGNORED, Encoding
from harness.corpora.examples import Example, Message
from harness.corpora.template import Template
from harness.corpora.thoughts import Thoughts
from harness.errors import ModelError
from harness.generation.decoding import Decoding
from harness.generation.transformers import agreement, answer, generate
from harness.models import adapter

LONG = Decoding(max_prompt=100)
PAD = 3


def prompts(count, seed=0):
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(60)}" for _ in range(rng.randint(1, 12))) for _ in range(count)]


def by_hand(model, tokenizer, prompt, new_tokens):
    """Greedy decoding without a cache, padding or a batch."""
    ids = tokenizer(prompt)["input_ids"]
    new = []
    for _ in range(new_tokens):
        token = model(torch.tensor([ids + new])).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("adapted", [False, True])
def test_answers_equal_decoding_one_prompt_at_a_time_by_hand(
    batch_size, adapted, make_model, make_tokenizer, save_adapter
):
    tokenizer, asked = make_tokenizer(), prompts(20)
    model = adapter.load(make_model(), save_adapter("a", seed=1)) if adapted else make_model()

    got = generate(model, tokenizer, asked, new_tokens=8, decoding=LONG, batch_size=batch_size)

    assert got == [by_hand(model, tokenizer, prompt, 8) for prompt in asked]
    assert len(set(got)) > 10
    assert agreement(model, tokenizer, asked, new_tokens=8, decoding=LONG, batch_size=7) == 1.0


def test_answer_stops_at_the_end_token_while_others_go_on(make_model, make_tokenizer):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(20)
    free = generate(model, tokenizer, asked, new_tokens=8, decoding=LONG)
    stop = next(word for word in free[0].split()[1:] if any(word not in other.split() for other in free))
    tokenizer.eos_token = stop

    got = generate(model, tokenizer, asked, new_tokens=8, decoding=LONG)

    assert got == [
        " ".join(answer.split()[: answer.split().index(stop)]) if stop in answer.split() else answer for answer in free
    ]
    assert stop in free[0].split()
    assert any(stop not in answer.split() for answer in free)


def test_generation_by_a_chat_template_stops_at_the_end_of_a_turn(make_model, make_tokenizer):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(20)
    free = generate(model, tokenizer, [f"<s> w0 {text} w1" for text in asked], new_tokens=8, decoding=LONG)
    stop = next(word for word in free[0].split()[1:] if any(word not in other.split() for other in free))
    tokenizer.add_special_tokens({"extra_special_tokens": [stop]})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ ' w0 ' + message.content }}"
        "{% else %}{{ ' w1 ' + message.content + ' STOP' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' w1' }}{% endif %}"
    ).replace("STOP", stop)

    got = generate(model, tokenizer, [(Message("user", text),) for text in asked], new_tokens=8, decoding=LONG)

    assert tokenizer.eos_token != stop
    assert got == [" ".join(answer.split(stop)[0].split()) for answer in free]
    assert got != free


def test_generation_stops_early_when_every_row_has_ended(make_model, make_tokenizer):
    model, tokenizer = make_model(), make_tokenizer()
    first = generate(model, tokenizer, ["w1 w2"], new_tokens=1, decoding=LONG)[0]
    tokenizer.eos_token = first
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    got = generate(model, tokenizer, ["w1 w2", "w1 w2"], new_tokens=50, decoding=LONG)

    assert got == ["", ""]
    assert len(calls) == 1


def test_long_prompt_keeps_its_end_and_is_counted(make_model, make_tokenizer, caplog):
    model, tokenizer = make_model(), make_tokenizer()
    long, short = "w1 w2 w3 w4 w5 w6 w7", "w5 w6 w7"

    with caplog.at_level(logging.WARNING):
        got = generate(model, tokenizer, [long, short], new_tokens=4, decoding=Decoding(max_prompt=3))

    assert got[0] == got[1]
    assert "1 of 2 prompts" in caplog.text


def around(tokenizer, single):
    """Let the tokenizer put special tokens around every text."""
    named = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[each for each in named if each[0] in single]
    )
    return tokenizer


def read_by(model):
    """Return what the model reads first, prompt by prompt, without padding."""
    seen = []

    def look(module, arguments, given):
        if given["input_ids"].shape[1] > 1:
            seen.extend([token for token in ids if token != PAD] for ids in given["input_ids"].tolist())

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> $A </s>", "<s> <s> $A </s>"])
def test_prompt_is_read_as_in_training(single, make_model, make_tokenizer):
    model, tokenizer = make_model(), around(make_tokenizer(), single)
    encoding = Encoding(template=Template.PLAIN, newline=False, max_length=30)
    examples = [Example("w1 w2 w3", "w4"), Example("w5", "w6 w7")]
    trained = [encoding.encode(tokenizer, example) for example in examples]
    seen = read_by(model)

    generate(model, tokenizer, [encoding.question(example) for example in examples], new_tokens=2, decoding=LONG)

    prompts = [
        [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORED] for row in trained
    ]
    assert sorted(seen) == sorted(prompts)
    assert [row.labels[-1] for row in trained] == [2, 2], "the end is learnt"


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ("$A", [6, 7, 8, 9, 10, 11]),
        ("<s> $A", [1, 7, 8, 9, 10, 11]),
        ("<s> $A </s>", [1, 7, 8, 9, 10, 11]),
        ("<s> <s> $A", [1, 1, 8, 9, 10, 11]),
    ],
)
def test_prompt_that_is_cut_keeps_what_stands_before_a_text(single, expected, make_model, make_tokenizer):
    model, tokenizer = make_model(), around(make_tokenizer(), single)
    seen = read_by(model)
    decoding = Decoding(max_prompt=6)

    asked = ["w0 w1 w2 w3 w4 w5 w6 w7", "w0 w1 w2 w3 w4 w5 w6 w7"]
    cut = answer(model, tokenizer, asked, new_tokens=1, decoding=decoding).cut

    assert seen == [expected]
    assert cut == 2
    assert answer(model, tokenizer, [], new_tokens=1, decoding=decoding).cut == 0


def test_prompt_as_long_as_allowed_is_whole(make_model, make_tokenizer):
    model, tokenizer = make_model(), around(make_tokenizer(), "<s> $A")
    seen = read_by(model)

    cut = answer(model, tokenizer, ["w0 w1 w2"], new_tokens=1, decoding=Decoding(max_prompt=4)).cut

    assert seen == [[1, 4, 5, 6]]
    assert cut == 0


def test_sampling_settings_of_a_model_neither_apply_nor_warn(make_model, make_tokenizer, caplog):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(4)
    expected = generate(model, tokenizer, asked, new_tokens=6, decoding=LONG)
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, repetition_penalty=3.0)
    own = model.generation_config
    model.train()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = generate(model, tokenizer, asked, new_tokens=6, decoding=LONG)

    assert got == expected
    assert not caplog.records
    assert model.training
    assert model.generation_config is own


@pytest.mark.slow
def test_batch_that_does_not_fit_into_memory_is_halved(make_model, make_tokenizer, monkeypatch, caplog):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(20)
    expected = generate(model, tokenizer, asked, new_tokens=6, decoding=LONG)
    room, tried, real = 5, [], model.generate

    def scarce(input_ids, **rest):
        tried.append(len(input_ids))
        if len(input_ids) > room:
            raise torch.OutOfMemoryError
        return real(input_ids=input_ids, **rest)

    monkeypatch.setattr(model, "generate", scarce)
    got = generate(model, tokenizer, asked, new_tokens=6, decoding=LONG, batch_size=16)
    room = 0

    assert got == expected
    assert tried == [16, 8, 4, 4, 4, 4, 4]
    with pytest.raises(ModelError, match=r"evaluation\.new_tokens"):
        generate(model, tokenizer, asked, new_tokens=6, decoding=LONG, batch_size=16)


def test_repeated_prompt_is_answered_once(make_model, make_tokenizer):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(3)
    rows = []
    model.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    got = generate(model, tokenizer, [*asked, *reversed(asked)], new_tokens=4, decoding=LONG)

    assert set(rows) == {3}
    assert got[:3] == got[:2:-1]


def test_no_prompts_give_no_answers(make_model, make_tokenizer):
    got = generate(make_model(), make_tokenizer(), [], new_tokens=4, decoding=LONG)

    assert got == []


def test_marker_of_an_answer_stays_in_a_generation_though_it_is_a_special_token(make_model, make_tokenizer):
    model, tokenizer, asked = make_model(), make_tokenizer(), prompts(6)
    free = generate(model, tokenizer, asked, new_tokens=8, decoding=LONG)
    marker, other = list(dict.fromkeys(free[0].split()))[:2]
    tokenizer.add_special_tokens({"extra_special_tokens": [marker, other]})
    thoughts = Thoughts(think="w0", answer=marker)

    got = answer(model, tokenizer, asked, new_tokens=8, decoding=LONG, thoughts=thoughts).texts

    assert got == [" ".join(word for word in text.split() if word != other) for text in free]
    assert marker in got[0].split()
