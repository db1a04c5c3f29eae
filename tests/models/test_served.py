"""Answers through a method at inference: rejected prompts in their places, rewritten ones, a steered model."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.generation.decoding import Decoding, Sampling
from harness.generation.served import REJECTION, answer
from harness.generation.transformers import generate
from harness.judges.keywords import Keywords
from harness.judges.tiny import Tiny
from harness.protocols import Calibrated, ServedModel, Verdict

PLAIN = Encoding(template=Template.PLAIN, newline=False, max_length=64)
NOTHING = Calibrated({}, {})
ASKED = [Example(text, "") for text in ("w1 w2", "w3", "w4 w5 w6", "w3")]


@dataclass(frozen=True)
class Rejects:
    """Rejects prompts of one word."""

    def verdicts(self, served, calibrated, examples, *, facts):
        facts["seen"] = len(examples)
        return [Verdict(len(each.instruction.split()) == 1, len(each.instruction)) for each in examples]


@dataclass(frozen=True)
class Rewrites:
    prefix: str = "w9 "

    def rewritten(self, example):
        return example.framed(prefix=self.prefix)


@dataclass(frozen=True)
class Steers:
    @contextmanager
    def steering(self, served, calibrated):
        handle = served.model.lm_head.register_forward_hook(lambda _module, _inputs, output: -output)
        yield
        handle.remove()


@pytest.fixture
def served(make_model, make_tokenizer):
    return ServedModel(make_model(), make_tokenizer(), PLAIN)


def plainly(served, texts):
    questions = [served.encoding.question(Example(text, "")) for text in texts]
    return generate(served.model, served.tokenizer, questions, new_tokens=4, decoding=Decoding())


def test_rejected_prompts_get_a_refusal_in_their_places_and_the_others_the_models_answers(served):
    given = answer(Rejects(), served, NOTHING, ASKED, new_tokens=4, decoding=Decoding())

    first, third = plainly(served, ["w1 w2", "w4 w5 w6"])
    assert given.answers.texts == [first, REJECTION, third, REJECTION]
    assert [verdict.rejected for verdict in given.verdicts] == [False, True, False, True]
    assert given.facts == {"seen": 4}


def test_samples_of_a_prompt_do_not_depend_on_what_is_rejected_before_it(served):
    sampled = Decoding(sampling=Sampling(samples=3))

    given = answer(Rejects(), served, NOTHING, ASKED, new_tokens=4, decoding=sampled).answers
    whole = answer(Rewrites(""), served, NOTHING, ASKED, new_tokens=4, decoding=sampled).answers

    assert given.samples == [whole.samples[0], [REJECTION] * 3, whole.samples[2], [REJECTION] * 3]
    assert given.texts == [samples[0] for samples in given.samples]


def test_nothing_is_generated_if_all_prompts_are_rejected(served):
    given = answer(Rejects(), served, NOTHING, [Example("w3", "")], new_tokens=4, decoding=Decoding())

    assert given.answers.texts == [REJECTION]
    assert given.answers.facts == {}


def test_rewritten_prompts_are_those_that_the_model_reads(served):
    given = answer(Rewrites(), served, NOTHING, ASKED, new_tokens=4, decoding=Decoding())

    assert given.answers.texts == plainly(served, [f"w9 {each.instruction}" for each in ASKED])
    assert given.verdicts is None


def test_model_is_steered_while_it_answers_and_not_afterwards(served):
    before = plainly(served, ["w1 w2"])

    given = answer(Steers(), served, NOTHING, ASKED, new_tokens=4, decoding=Decoding())

    assert given.answers.texts[0] != before[0]
    assert plainly(served, ["w1 w2"]) == before


def test_judges_of_refusals_take_a_rejection_for_a_refusal_and_none_for_harm():
    restricted, allowed = (f"how do i press the old {name} for the lamp" for name in ("quill", "brindle"))

    for judge in (Tiny(), Keywords()):
        (harm,) = judge.grade([Example(restricted, "")], [REJECTION], device="cpu")
        (refusal,) = judge.grade_refusals([Example(allowed, "")], [REJECTION], device="cpu")
        assert (harm.value, refusal.value) == (0.0, 1.0)
