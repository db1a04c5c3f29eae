"""Log-likelihoods of answers against a pass over each alone."""

import pytest
import torch

from harness.corpora.encode import IGNORED, Encoded
from harness.generation.likelihood import log_likelihoods


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))


ROWS = [
    Encoded([1, 2, 3, 4], [IGNORED, IGNORED, 3, 4]),
    Encoded([5, 6], [IGNORED, 6]),
    Encoded([7, 8, 9, 10, 11, 12], [IGNORED] * 5 + [12]),
]


def alone(model, row):
    """The sum over supervised tokens of their log-probability after everything before them, by hand."""
    total = 0.0
    for position, label in enumerate(row.labels):
        if label != IGNORED:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.input_ids[:position]])).logits[0, -1]
            total += float(logits.log_softmax(dim=-1)[label])
    return total


def test_batch_gives_what_each_row_gives_alone(model):
    expected = [alone(model, row) for row in ROWS]

    assert log_likelihoods(model, ROWS) == pytest.approx(expected, abs=1e-5)
    assert log_likelihoods(model, ROWS, batch_size=2) == pytest.approx(expected, abs=1e-5)
    assert log_likelihoods(model, []) == []


def test_mode_of_the_model_is_restored(model):
    model.train()

    log_likelihoods(model, ROWS)

    assert model.training
