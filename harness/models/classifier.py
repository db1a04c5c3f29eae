"""Multi-label sequence classifiers: loading, and the probability of every label for every text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

from harness.errors import ModelError
from harness.models.forward import in_token_batches


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A loaded classifier.

    Attributes:
        model: a ``LlamaForSequenceClassification`` in eval mode.
        tokenizer: its tokenizer.
        labels: the names of the outputs, in order.
    """

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]


def load_classifier(folder: Path, *, labels: tuple[str, ...], dtype: str, device: str) -> Classifier:
    """Load a LLaMA classifier with one sigmoid output per label.

    Args:
        folder: a folder with the configuration, the weights and the tokenizer.
        labels: the names of the outputs, used if the model's configuration does not name them.
        dtype: the name of a torch dtype.
        device: a torch device string.

    Raises:
        ModelError: the model has another architecture or another number of outputs.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "llama" or config.num_labels != len(labels):
        raise ModelError(
            f"{folder}: a {config.model_type} model with {config.num_labels} outputs; expected a llama classifier "
            f"with {len(labels)}"
        )
    own = tuple(config.id2label[index] for index in range(config.num_labels))
    config.problem_type = "multi_label_classification"
    model = LlamaForSequenceClassification.from_pretrained(folder, config=config, dtype=getattr(torch, dtype))
    named = not all(name.startswith("LABEL_") for name in own)
    return Classifier(
        model=model.to(device).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        labels=own if named else labels,
    )


@torch.inference_mode()
def probabilities(
    classifier: Classifier, texts: Sequence[str], *, max_tokens: int, batch_tokens: int
) -> list[dict[str, float]]:
    """Return the sigmoid of every output for every text, by label, in the order of the texts.

    The end-of-sequence token is appended before a text is truncated on the right to ``max_tokens``, so that a long text
    loses this token too. The head reads the last remaining token. Padding is on the right and identified by length, not
    by token id: with a tokenizer whose padding token is its end token, the head would otherwise read one token too
    early.

    Args:
        classifier: the loaded model.
        texts: the texts to classify.
        max_tokens: texts are truncated to this many tokens.
        batch_tokens: tokens per forward pass, including padding; halved whenever memory runs out.

    Raises:
        ModelError: a single text does not fit into memory.
    """
    tokenizer, labels = classifier.tokenizer, classifier.labels
    encoded = [tokenizer(text + tokenizer.eos_token)["input_ids"][:max_tokens] for text in texts]
    rows = in_token_batches(
        encoded, partial(_probabilities, classifier.model), batch_tokens=batch_tokens, device=classifier.model.device
    )
    return [dict(zip(labels, row, strict=True)) for row in rows]


def _probabilities(model: Any, rows: Sequence[list[int]]) -> list[list[float]]:
    """Return the sigmoid of every output, ``[rows, labels]``."""
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.arange(longest, device=model.device)[None, :] < lengths[:, None]
    hidden = model.model(ids, attention_mask=mask.long(), use_cache=False)
    last = hidden.last_hidden_state[torch.arange(len(rows), device=model.device), lengths - 1]
    values: list[list[float]] = torch.sigmoid(model.score(last).float()).tolist()
    return values
