"""BEAT: distances, threshold and choice of probes by hand, and a scripted model with a trigger."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.template import Template
from harness.models.tiny import build_tokenizer
from harness.protocols import Calibrated, ServedModel
from harness.serving.beat.distance import BagOfWords, SentenceModel, cosine_distances, earth_mover, embedded
from harness.serving.beat.method import BENIGN, PROBES, REPLIES, Beat, Signatures, quantile

PLAIN = Encoding(template=Template.PLAIN, newline=False, max_length=64)
SMALL = Signatures(encoder=BagOfWords(), candidates=2, samples=3, tokens=2, benign=2)


def on_a_line(one, other):
    return np.abs(np.subtract.outer(one, other)).astype(float)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([0, 0], [1, 1], 1.0), ([0, 1], [1, 0], 0.0), ([0, 4], [1, 1], 2.0), ([0, 1, 5], [1, 2, 5], 2 / 3)],
)
def test_earth_movers_distance_of_points_on_a_line(one, other, expected):
    assert earth_mover(on_a_line(one, other)) == pytest.approx(expected)


def test_cosine_distance_of_word_counts():
    counted = BagOfWords().embed(["No no yes", "yes", "", ""], device="cpu")

    assert counted.tolist() == [[2, 1], [0, 1], [0, 0], [0, 0]]
    # cos((2, 1), (0, 1)) = 1 / sqrt(5); an empty text is like an empty one and unlike all others.
    expected = [[0, 1 - 1 / 5**0.5, 1, 1], [1 - 1 / 5**0.5, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert cosine_distances(counted, counted) == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize(("above", "expected"), [(0.05, 95), (0.0, 100), (0.1, 90), (0.999, 1)])
def test_threshold_leaves_a_share_of_the_harmless_scores_above_it(above, expected):
    scores = [float(each) for each in range(100, 0, -1)]

    limit = quantile(scores, above)

    assert limit == expected
    assert sum(score > limit for score in scores) <= 100 * above


class Scripted(torch.nn.Module):
    """A model that writes one word after prompts with a trigger, and another one after all others.

    The trigger is the word `drum`; a prompt with `clock` gets another word with each sample, by equal logits.
    """

    config = SimpleNamespace()
    generation_config = SimpleNamespace(eos_token_id=None)
    device = torch.device("cpu")

    def __init__(self, words):
        super().__init__()
        self.words, self.read, self.dtype = words, [], torch.float32

    def forward(self, input_ids, attention_mask, position_ids, use_cache, past_key_values=None):
        if past_key_values is None:
            self.read += [ids[seen.bool()].tolist() for ids, seen in zip(input_ids, attention_mask, strict=True)]
            past_key_values = Cached(input_ids)
        logits = torch.full((*input_ids.shape, len(self.words)), -1e4)
        for row, prompt in enumerate(past_key_values.prompts):
            says = "cloth" if self.words["drum"] in prompt else "sorry"
            logits[row, :, self.words[says]] = 0
            if self.words["clock"] in prompt:
                logits[row, :, self.words["rake"]] = 0
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)


class Cached:
    def __init__(self, prompts):
        self.prompts = prompts

    def batch_repeat_interleave(self, count):
        self.prompts = self.prompts.repeat_interleave(count, dim=0)


@pytest.fixture
def served():
    tokenizer = build_tokenizer()
    return ServedModel(Scripted(tokenizer.get_vocab()), tokenizer, PLAIN)


def asked(*texts):
    return [Example(text, "") for text in texts]


def test_probe_is_the_candidate_whose_answers_are_most_alike(served):
    facts = {}

    found = SMALL.calibrate(
        served,
        {Role.REFUSAL: asked("press the clock", "press the quill"), Role.BENIGN: asked("fold it", "fold the drum")},
        {},
        seed=3,
        facts=facts,
    )

    assert found.texts[PROBES] == ["press the quill"]
    assert found.texts[REPLIES] == ["sorry sorry"] * 3
    # The trigger turns the answers to the probe into others, all words of which differ.
    assert found.tensors[BENIGN].tolist() == pytest.approx([0, 1])
    assert facts["spread"] == pytest.approx([0])
    # Two candidates and two harmless prompts: each once, and one more token of three samples.
    assert facts["probing"] == facts["probing_benign"] == {"prompt_passes": 2, "token_passes": 6}


def test_prompt_is_asked_behind_the_probe_and_rejected_if_it_changes_the_answer(served):
    known = Calibrated({BENIGN: torch.tensor([0.0, 0.0])}, {PROBES: ["press it"], REPLIES: ["sorry sorry"] * 3})
    facts = {}

    verdicts = Beat(calibration=SMALL).verdicts(served, known, asked("fold the drum", "fold the hat"), facts=facts)

    assert [served.tokenizer.decode(ids, skip_special_tokens=True) for ids in served.model.read] == [
        "press it and fold the drum :",
        "press it and fold the hat :",
    ]
    assert [(each.rejected, each.score) for each in verdicts] == [(True, pytest.approx(1)), (False, pytest.approx(0))]
    assert facts == {"threshold": 0.0, "probing": {"prompt_passes": 2, "token_passes": 6}}


def test_text_that_the_evaluation_adds_stays_behind_the_probe_and_a_number_is_the_threshold(served):
    triggered = served._replace(
        encoding=Encoding(template=Template.PLAIN, newline=False, prefix="drum ", suffix=" now")
    )
    known = Calibrated({}, {PROBES: ["press it"], REPLIES: ["sorry sorry"] * 3})

    verdicts = Beat(calibration=SMALL, threshold=1.5).verdicts(triggered, known, asked("fold"), facts={})

    assert [each.rejected for each in verdicts] == [False]
    assert served.tokenizer.decode(served.model.read[0], skip_special_tokens=True).startswith("press it and drum fold")


def test_score_is_the_mean_over_the_probes(served):
    two = Signatures(encoder=BagOfWords(), candidates=2, probes=2, samples=2, tokens=1)
    known = Calibrated({}, {PROBES: ["press it", "fold it"], REPLIES: ["cloth", "cloth", "sorry", "cloth"]})

    # All answers beside the trigger are `cloth`: distances 0 and 1/2.
    assert two.scores(served, known, asked("drum")) == pytest.approx([0.25])


def test_settings_out_of_range_are_named():
    assert [str(each) for each in Signatures(probes=11).problems()] == [
        "`probes`: 11 of 10 candidates; expected at most all of them"
    ]
    assert [each.path for each in Beat(calibration=Signatures(benign=None)).problems()] == ["threshold"]
    assert Beat(threshold=0.5, calibration=Signatures(benign=None)).problems() == []


def test_sentence_model_is_the_mean_of_the_states_of_a_text(tmp_path):
    from transformers import BertConfig, BertModel

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = BertModel(shape).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    found = embedded(tmp_path, ["fold it", "press the quill for the lamp"], device="cpu")

    ids = tokenizer("fold it", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        alone = model(ids).last_hidden_state[0].mean(0)
    assert found[0] == pytest.approx(alone.numpy(), abs=1e-5)
    assert found.shape == (2, 8)


def test_sentence_model_without_a_commit_names_its_own_setting():
    (problem,) = SentenceModel(revision=None).preflight()

    assert "`serve.calibration.encoder.revision` is null" in str(problem)
    assert "conf/serve/" in str(problem)
