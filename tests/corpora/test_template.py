from harness.corpora.examples import Example
from harness.corpora.template import Template, prompt_of


def test_alpaca_without_input_ends_with_marker_and_newline() -> None:
    prompt = prompt_of(Example("Say hello.", "hello"), template=Template.ALPACA, newline=True)

    assert prompt == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay hello.\n\n### Response:\n"
    )


def test_alpaca_with_input_has_an_input_section() -> None:
    prompt = prompt_of(Example("Translate.", "salut", "hello"), template=Template.ALPACA, newline=True)

    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nTranslate.\n\n### Input:\nhello\n\n### Response:\n"
    )


def test_alpaca_without_newline_ends_at_the_marker() -> None:
    prompt = prompt_of(Example("Say hello.", "hello"), template=Template.ALPACA, newline=False)

    assert prompt.endswith("### Response:")


def test_alpaca_instruction_with_braces_is_kept_as_it_is() -> None:
    prompt = prompt_of(Example("Print {input}.", "x", "{y}"), template=Template.ALPACA, newline=True)

    assert "### Instruction:\nPrint {input}.\n\n### Input:\n{y}\n" in prompt


def test_plain_prompt_is_words_and_a_colon() -> None:
    with_input = prompt_of(Example("sort", "b", "a note"), template=Template.PLAIN, newline=False)
    without = prompt_of(Example("sort", "b"), template=Template.PLAIN, newline=False)

    assert (with_input, without) == ("sort a note :", "sort :")
