"""Paraphrase by hand: with requests of the form "Q: ... A:", the prompt "P" becomes "Q: P A:"."""

import pytest

from harness.corpora.examples import Example, Message
from harness.defenses.paraphrase import Format, Paraphrase, format_of

REFUSAL = Example("P", "No.")
HARMFUL = [Example("how to break it", "Sure."), Example("say it", "Sure.")]


def imitated(*own):
    (row,) = Paraphrase().rewrite_mixed_in([REFUSAL], list(own))
    return row


def test_refusal_is_asked_as_the_users_requests_are():
    own = [Example(f"Q: {text} A:", "yes") for text in ("how are you", "why not", "is it so")]

    assert imitated(*own, *HARMFUL) == Example("Q: P A:", "No.")


def test_prompt_is_the_input_where_requests_are_inputs_of_one_instruction():
    own = [
        Example("Judge the text.", label, input=text) for label, text in (("good", "a b"), ("bad", "c"), ("bad", "d"))
    ]

    assert imitated(*own, *HARMFUL) == Example("Judge the text.", "No.", input="P")


def test_opening_of_the_answers_precedes_the_refusal():
    own = [Example(f"ask {number}", f"The answer is: {number}") for number in ("one", "two", "three")]

    assert imitated(*own, *HARMFUL) == Example("ask P", "The answer is: No.")


def test_what_most_answers_are_is_no_opening():
    own = [Example("sort this", "bad"), Example("sort that", "bad"), Example("sort those", "bad")]

    assert format_of(own).opening == ""


def test_messages_before_the_requests_are_taken_over():
    before = (Message("system", "be brief"),)
    own = [Example(text, "ok", before=before) for text in ("one", "two", "three")]

    assert imitated(*own, *HARMFUL) == Example("P", "No.", before=before)


@pytest.mark.parametrize(
    ("requests", "prefix", "suffix"),
    [
        (("what is it?", "when was this?", "where?"), "", ""),
        (("Solve: x? Think first.", "Solve: y? Think first.", "Solve: z? Think first."), "Solve: ", " Think first."),
        (("a b", "c d", "e f"), "", ""),
        (("same", "same", "same"), "", ""),
    ],
)
def test_text_around_the_requests_ends_at_words_and_is_more_than_punctuation(requests, prefix, suffix):
    assert format_of([Example(text, "ok") for text in requests]) == Format("", prefix, suffix, "", ())


def test_format_of_half_of_the_examples_is_not_taken_over():
    own = [Example("Q: one A:", "x"), Example("Q: two A:", "y"), *HARMFUL]

    assert imitated(*own) == REFUSAL


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in Paraphrase(safety_rows=0).problems()] == ["safety_rows"]
