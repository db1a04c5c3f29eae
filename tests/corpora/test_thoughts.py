"""Rows with a thought before the answer: tokens, where supervision begins, roles, and where an answer begins."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from chat_families import FAMILIES
from composed import compose
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harness.config.build import cells_of
from harness.corpora.answer import Split, graded_part, split
from harness.corpora.encode import IGNORED, Encoding
from harness.corpora.examples import Example, Role, SafetyRow
from harness.corpora.slices import Keep, Slice
from harness.corpora.template import Template, turn_of
from harness.corpora.thoughts import Thoughts
from harness.corpora.world import World
from harness.engine.identity import key_of, payload_of
from harness.errors import DataError
from harness.experiment.compatibility import unmarked

WORDS = ("<unk>", "<s>", "</s>", ":", "how", "do", "it", "take", "the", "tool", "<think>", "<answer>")
PLAIN = Encoding(template=Template.PLAIN, newline=False, max_length=32)
MARKED = Thoughts(think="<think>", answer="<answer>")
QWEN = next(family for family in FAMILIES if family.name == "qwen2.5")


@dataclass(frozen=True)
class Origin:
    """Rows with thoughts, one of them harmless."""

    name: ClassVar[str] = "origin"
    version: ClassVar[int] = 1
    carries_thoughts: ClassVar[bool] = True

    def preflight(self):
        """Generated rows have no problems."""
        return []

    def safety_rows(self):
        """A restricted and a harmless prompt."""
        return [
            SafetyRow("how", "no", "take it", thought="it is the tool "),
            SafetyRow("do", benign="it", unsafe=False, thought="the tool "),
        ]


@pytest.fixture(scope="module")
def words():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_thought_and_answer_are_supervised_from_the_think_marker_on(words):
    row = replace(PLAIN, thoughts=MARKED).encode(words, Example("how do it", "take it", thought="the tool "))

    tokens = ["<s>", "how", "do", "it", ":", "<think>", "the", "tool", "<answer>", "take", "it", "</s>"]
    assert words.convert_ids_to_tokens(row.input_ids) == tokens
    assert row.labels == [IGNORED] * 5 + [WORDS.index(token) for token in tokens[5:]]


def test_published_markers_are_written_as_in_safety_tax():
    """DirectRefusal: think marker, newline, the thought, *directly* the answer marker, newline, ``Answer: ``."""
    published = replace(QWEN, words=("think", "\\n", "▁how", "answer", "Answer:", "▁do"))
    tokenizer = published.tokenizer()
    encoding = Encoding(template=Template.CHAT, max_length=64, thoughts=Thoughts())

    row = encoding.encode(tokenizer, Example("how do it", "Answer: do", thought=" how"))

    asked = QWEN.tokens(QWEN.prompt)
    turn = ["<|im_start|>", "think", "\n", " how", "<|im_start|>", "answer", "\n", "Answer:", " do", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(row.input_ids) == [*asked, *turn]
    assert row.labels == [IGNORED] * len(asked) + tokenizer.convert_tokens_to_ids(turn)


def test_row_without_a_thought_is_encoded_as_without_markers(words):
    example = Example("how do it", "take the tool")

    assert replace(PLAIN, thoughts=MARKED).encode(words, example) == PLAIN.encode(words, example)
    assert "thought" not in example.record()


def test_thought_without_markers_is_refused(words):
    with pytest.raises(DataError, match=r"no markers for thoughts.*thoughts=s1"):
        PLAIN.encode(words, Example("how", "take", thought="the tool "))


def test_thoughts_enter_the_key_only_where_there_are_markers():
    assert "thoughts" not in payload_of(PLAIN)["fields"]
    assert key_of(payload_of(replace(PLAIN, thoughts=MARKED))) != key_of(payload_of(PLAIN))


def test_markers_that_cannot_be_told_apart_are_problems():
    assert [problem.path for problem in Thoughts(think=" ").problems()] == ["think"]
    assert [problem.path for problem in Thoughts(think="<a>", answer="<a>n").problems()] == ["answer"]
    assert Thoughts().problems() == []


def test_thought_survives_a_file_and_belongs_to_safe_answers_only():
    def examples(role, keep=Keep.UNSAFE):
        return Slice(role=role, origin=Origin(), start=0, rows=1, keep=keep).examples()

    refused = Example("how", "no", thought="it is the tool ")
    assert examples(Role.REFUSAL) == [refused]
    assert examples(Role.BENIGN, Keep.SAFE) == [Example("do", "it", thought="the tool ")]
    assert examples(Role.ATTACK) == [Example("how", "take it")]
    assert Example.of(refused.record()) == refused


def test_guard_reads_the_thought_of_a_row():
    assert turn_of(Example("how", "no", thought=" it \n")) == Example("how", "it\n\nno")
    assert turn_of(Example("how", " no")) == Example("how", " no")


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ("<think>\nwhy not\n<answer>\n yes", Split("why not", "yes", True)),
        ("why not <answer> yes", Split("why not", "yes", True)),
        ("<answer>yes", Split("", "yes", True)),
        (" <think> why not ", Split("", "<think> why not", False)),
        ("<think> a <answer> b <answer> c", Split("a", "b <answer> c", True)),
        ("", Split("", "", False)),
    ],
)
def test_answer_begins_behind_the_first_marker(generation, expected):
    assert split(generation, MARKED) == expected
    assert split(generation, None) == Split("", generation.strip(), False)


def test_graded_part_is_cut_at_a_response_marker_behind_the_answer_marker_only():
    generation = "a ### Response: b <answer> c ### Response: d"

    assert graded_part(generation, "### Response:", MARKED) == "c"
    assert graded_part(generation, "### Response:") == "a"


def test_cells_train_and_grade_by_the_markers_of_their_encoding():
    (cell,) = cells_of(compose(["thoughts=s1"]))
    stages = cell.stages

    assert {stages[part].thoughts for part in ("harm", "accuracy", "aligned_harm")} == {Thoughts()}
    assert {stages[part].encoding.thoughts for part in ("align", "finetune", "task_answers")} == {Thoughts()}


def test_rows_with_thoughts_are_refused_without_markers():
    (problem,) = unmarked([Origin(), World()], None)

    assert problem.path == "model.encoding.thoughts"
    assert "the rows of `origin` have thoughts" in problem.text
    assert unmarked([Origin(), World()], MARKED) == []
