import re
from dataclasses import replace

import pytest
from chat_families import FAMILIES, R1_DISTILL, Family

from harness.corpora.chat import turn_end
from harness.corpora.encode import IGNORED, Encoding, ends_of, prompts_of
from harness.corpora.examples import Example, Message
from harness.corpora.template import Template
from harness.corpora.thoughts import Thoughts
from harness.errors import DataError, ModelError

CHAT = Encoding(template=Template.CHAT, max_length=64)
KIND = replace(CHAT, system="be kind")
ASKED = Example("how do it", "take the tool")
TURNS = ASKED._replace(before=(Message("user", "hi"), Message("assistant", "wait")))
BY_NAME = {family.name: family for family in FAMILIES}

families = pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])


def check_row(family: Family, encoding: Encoding, example: Example, prompt: str) -> None:
    tokenizer = family.tokenizer()
    row = encoding.encode(tokenizer, example)

    assert row is not None
    asked, answer = family.tokens(prompt), family.tokens(family.answer)
    assert tokenizer.convert_ids_to_tokens(row.input_ids) == [*asked, *answer]
    assert row.labels == [IGNORED] * len(asked) + tokenizer.convert_tokens_to_ids(answer)
    assert [found.ids for found in prompts_of(tokenizer, [encoding.question(example)])] == [row.input_ids[: len(asked)]]


@families
def test_answer_and_the_end_of_its_turn_are_supervised_and_nothing_else(family: Family) -> None:
    check_row(family, CHAT, ASKED, family.prompt)


@families
def test_earlier_turns_are_part_of_the_prompt(family: Family) -> None:
    check_row(family, CHAT, TURNS, family.turns)


@families
def test_system_prompt_is_written_or_refused(family: Family) -> None:
    if family.system is not None:
        check_row(family, KIND, ASKED, family.system)
        return
    with pytest.raises(ModelError, match=r"has no system prompt \(System role not supported\).* `system` "):
        KIND.encode(family.tokenizer(), ASKED)


def test_system_prompt_that_a_template_drops_is_refused() -> None:
    family = replace(
        BY_NAME["llama3"], template="{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )

    with pytest.raises(ModelError, match=r"no system prompt .*does not write it"):
        KIND.encode(family.tokenizer(), ASKED)


def test_system_prompt_of_an_example_takes_precedence() -> None:
    own = ASKED._replace(before=(Message("system", "be kind"),))

    check_row(BY_NAME["qwen2.5"], replace(CHAT, system="hi"), own, str(BY_NAME["qwen2.5"].system))


@families
def test_generation_ends_with_the_turn(family: Family) -> None:
    tokenizer = family.tokenizer()

    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == family.end
    ends = ends_of(tokenizer, [CHAT.question(ASKED)])
    assert {tokenizer.convert_ids_to_tokens(end) for end in ends} == {family.end, family.eos}
    assert ends_of(tokenizer, ["how do it"]) == {tokenizer.eos_token_id}


@families
def test_prompt_has_the_bos_of_the_template_only(family: Family) -> None:
    tokenizer = family.tokenizer()
    (prompt,) = prompts_of(tokenizer, [CHAT.question(ASKED)])

    with_added = tokenizer(tokenizer.decode(prompt.ids))["input_ids"]
    added = [tokenizer.bos_token_id] if family.adds_bos else []
    assert with_added[: len(added) + 1] == [*added, prompt.ids[0]]
    assert (prompt.ids[0] == tokenizer.bos_token_id) is (family.bos is not None)
    assert prompt.opening == (prompt.ids[:1] if family.bos else [])


def test_input_follows_the_instruction_after_a_blank_line() -> None:
    assert CHAT.question(Example("how do it", "", "tool")) == (Message("user", "how do it\n\ntool"),)


def test_boundary_that_a_token_would_span_is_kept() -> None:
    """Byte-level BPE has a token for two newlines: one of the template and one of the answer."""
    family = BY_NAME["qwen2.5"]
    tokenizer = family.tokenizer()
    row = CHAT.encode(tokenizer, Example("how do it", "\ntool"))

    assert row is not None
    assert tokenizer.convert_ids_to_tokens(row.input_ids) == [*family.tokens(family.prompt), "\n", "tool", "<|im_end|>"]
    assert [label != IGNORED for label in row.labels][-4:] == [False, True, True, True]


def test_truncated_answers_are_counted_by_the_end_of_the_turn() -> None:
    """The tokenizer's own end token is not the one that ends a turn of Gemma 2."""
    tokenizer = BY_NAME["gemma2"].tokenizer()
    prompt, answer = len(BY_NAME["gemma2"].prompt.split()), len(BY_NAME["gemma2"].answer.split())

    for room, cut in ((prompt + answer, 0), (prompt + answer - 1, 1)):
        encoding = replace(CHAT, max_length=room)
        assert encoding.truncated_count(tokenizer, encoding.encode_all(tokenizer, [ASKED]).rows) == cut
    assert replace(CHAT, max_length=prompt).encode(tokenizer, ASKED) is None


def test_tokenizer_without_a_chat_template_is_refused() -> None:
    tokenizer = BY_NAME["llama3"].tokenizer()
    tokenizer.chat_template = None

    with pytest.raises(ModelError, match=r"no chat template.*`model.encoding.template=alpaca`"):
        CHAT.encode(tokenizer, ASKED)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}", "today's date"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", "ends an answer with `.`"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}", "as the continuation"),
        ("{% for m in messages %}{{ m.content | upper }}<|eot_id|>{% endfor %}", "as the continuation"),
        ("{{ raise_exception('no') }}", re.escape("rejects a conversation (no)")),
    ],
    ids=["date", "no end", "changed prompt", "changed answer", "rejects"],
)
def test_template_that_cannot_be_used_is_refused_with_the_reason(template: str, reason: str) -> None:
    tokenizer = replace(BY_NAME["llama3"], template=template).tokenizer()

    with pytest.raises(ModelError, match=reason):
        CHAT.encode(tokenizer, ASKED)


R1 = Family(
    name="r1_distill",
    template=R1_DISTILL,
    prompt="<|bos|> <|User|> how ▁do ▁it <|Assistant|>",
    turns="<|bos|> <|User|> hi <|Assistant|> wait <|eos|> <|User|> how ▁do ▁it <|Assistant|>",
    system="<|bos|> be ▁kind <|User|> how ▁do ▁it <|Assistant|>",
    answer="take ▁the ▁tool <|eos|>",
    bos="<|bos|>",
    eos="<|eos|>",
    end="<|eos|>",
    special=("<|User|>", "<|Assistant|>"),
    words=("<think> \\n wait <answer> </think>",),
)
OWN_MARKERS = replace(CHAT, thoughts=Thoughts(think="<think>", answer="</think>"))
THOUGHT = ASKED._replace(thought="wait\n")


@pytest.mark.parametrize("example", [ASKED, THOUGHT], ids=["answer", "thought and answer"])
def test_template_that_opens_a_thought_in_prompts_only_is_refused(example: Example) -> None:
    with pytest.raises(
        ModelError, match=r"(?s)continuation of its prompt \(`.*<think>\s*`.*open a thought in the prompt"
    ):
        OWN_MARKERS.encode(R1.tokenizer(), example)


def test_template_that_drops_thoughts_keeps_answers_and_is_refused_with_the_thoughts_that_it_would_drop() -> None:
    family = replace(R1, template=R1_DISTILL.replace("<think>\n", ""))

    check_row(family, OWN_MARKERS, ASKED, family.prompt)
    check_row(family, CHAT, TURNS, family.turns)
    check_row(
        replace(family, answer="<think> \\n wait \\n <answer> \\n take ▁the ▁tool <|eos|>"),
        replace(CHAT, thoughts=Thoughts(think="<think>", answer="<answer>")),
        THOUGHT,
        family.prompt,
    )
    with pytest.raises(ModelError, match=r"(?s)continuation of its prompt .*or drop it from the answer"):
        OWN_MARKERS.encode(family.tokenizer(), THOUGHT)


def test_earlier_turns_need_the_chat_template() -> None:
    tokenizer = BY_NAME["llama3"].tokenizer()

    for template in (Template.ALPACA, Template.PLAIN):
        with pytest.raises(DataError, match=r"a turn before .*`model.encoding.template=chat`"):
            Encoding(template=template).encode(tokenizer, TURNS)


def test_system_prompt_precedes_the_text_of_other_templates() -> None:
    own = ASKED._replace(before=(Message("system", "be kind"),))

    for template, prompt in ((Template.PLAIN, "be kind how do it :"), (Template.ALPACA, "be kind\n\nBelow is an")):
        for encoding, example in (
            (Encoding(template=template, system="be kind"), ASKED),
            (Encoding(template=template, system="x"), own),
        ):
            assert str(encoding.question(example)).startswith(prompt)


def test_messages_are_stored_with_an_example() -> None:
    assert Example.of(TURNS.record()) == TURNS
    assert ASKED.record() == {"instruction": "how do it", "output": "take the tool", "input": ""}
