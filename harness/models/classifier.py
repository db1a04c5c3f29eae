"""A decoder with a multi-label head: load it, and read the probability of every label for every text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

from harness.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A loaded classifier.

    Attributes:
        model: a ``LlamaForSequenceClassification`` in evaluation mode.
        tokenizer: the tokenizer beside it.
        labels: the name of each output, in the order of the head.
    """

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]


def load_classifier(folder: Path, *, labels: tuple[str, ...], dtype: str, device: str) -> Classifier:
    """Load a LLaMA classifier with one sigmoid output per label.

    Args:
        folder: a folder with the configuration, the weights and the tokenizer.
        labels: the names of the outputs, used where the model's own configuration does not name them.
        dtype: the name of a torch dtype.
        device: a torch device string.

    Raises:
        ModelError: the folder holds another kind of model, or one with another number of outputs.
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
    classifier: Classifier, texts: Sequence[str], *, max_tokens: int, batch_size: int
) -> list[dict[str, float]]:
    """Return the sigmoid of every output for every text, by label, in the order of the texts.

    The end-of-sequence token is appended to the text before it is cut on the right to ``max_tokens``, so a long text
    loses its end together with that token. The head reads the last token that is left. Padding is on the right and
    found by length, never by token id: a tokenizer whose padding token is also its end token would otherwise be read
    one token too early.
    """
    tokenizer, model = classifier.tokenizer, classifier.model
    device = next(model.parameters()).device
    encoded = [tokenizer(text + tokenizer.eos_token)["input_ids"][:max_tokens] for text in texts]
    by_length = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
    found: dict[int, dict[str, float]] = {}
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        lengths = torch.tensor([len(encoded[index]) for index in chosen], device=device)
        longest = int(lengths.max())
        rows = [pad(torch.tensor(encoded[index]), (0, longest - len(encoded[index]))) for index in chosen]
        mask = torch.arange(longest, device=device)[None, :] < lengths[:, None]
        hidden = model.model(torch.stack(rows).to(device), attention_mask=mask.long(), use_cache=False)
        last = hidden.last_hidden_state[torch.arange(len(chosen), device=device), lengths - 1]
        values = torch.sigmoid(model.score(last).float()).tolist()
        for index, row in zip(chosen, values, strict=True):
            found[index] = dict(zip(classifier.labels, row, strict=True))
    return [found[index] for index in range(len(texts))]
