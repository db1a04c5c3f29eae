"""Log-likelihoods of given answers, for constrained tasks whose classes are compared instead of generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from harness.corpora.encode import IGNORED, Encoded
from harness.generation.transformers import arithmetic, evaluating

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

BATCH = 64
"""Sequences per forward pass."""


def log_likelihoods(
    model: PreTrainedModel | PeftModel, rows: Sequence[Encoded], *, batch_size: int = BATCH
) -> list[float]:
    """Return the summed log-probability, in nats, of the supervised tokens of each row: its answer and the end token.

    Args:
        model: with an adapter attached or without; its train/eval mode is restored on return.
        rows: encoded prompts with answers.
        batch_size: rows per forward pass; changes the values by rounding only.
    """
    found: list[float] = []
    with evaluating(model) as base, torch.inference_mode(), arithmetic(base):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            # Padded on the right and masked, so which token pads does not matter.
            width = max(len(row.input_ids) for row in batch)
            ids = _padded([row.input_ids for row in batch], width, 0).to(base.device)
            labels = _padded([row.labels for row in batch], width, IGNORED).to(base.device)
            mask = _padded([[1] * len(row.input_ids) for row in batch], width, 0).to(base.device)
            logits = base(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            targets = labels[:, 1:]
            chosen = logits.log_softmax(dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
            found += chosen.masked_fill(targets == IGNORED, 0.0).sum(dim=1).tolist()
    return found


def _padded(rows: Sequence[Sequence[int]], width: int, pad: int) -> torch.Tensor:
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
