"""Guards whose weights an attack reads: the loss toward the verdict "harmless", of token rows and of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch

from harness.corpora.examples import Example
from harness.models.forward import in_token_batches

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 8192
"""Tokens per forward pass, including padding; affects speed only."""


@final
@dataclass(frozen=True)
class WhiteBox:
    """An opened guard.

    Attributes:
        model: in eval mode, frozen.
        tokenizer: its tokenizer.
        encode: returns the tokens that the guard reads of rows, each one turn of the user and one of the assistant.
        read: number of last positions whose hidden states decide.
        verdict: returns ``-log P(harmless)``, ``[rows]``, of the hidden states at these positions, ``[rows, read,
            width]``.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    encode: Callable[[Sequence[Example]], list[list[int]]]
    read: int
    verdict: Callable[[Tensor], Tensor]

    @property
    def embeddings(self) -> Tensor:
        """The input embeddings, ``[vocabulary, width]``."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def tokens(self, turns: Sequence[Example]) -> list[list[int]]:
        """Return what the guard reads of uploaded rows."""
        return self.encode(turns)

    def losses(self, rows: Sequence[list[int]]) -> list[float]:
        """Return ``-log P(harmless)`` of every row of ``tokens``, in nats."""
        with torch.no_grad():
            return in_token_batches(
                rows,
                partial(_losses, self),
                batch_tokens=BATCH_TOKENS,
                device=self.model.device,
                model="attack's guard",
                remedy="A smaller `attack_guard` or shorter examples need less.",
            )

    def loss(self, embedded: Tensor) -> Tensor:
        """Return ``-log P(harmless)`` of a row, given its input embeddings ``[time, width]``, for gradients."""
        decoder = self.model.get_decoder()
        hidden = decoder(inputs_embeds=embedded[None], use_cache=False).last_hidden_state
        return self.verdict(hidden[:, -self.read :])[0]


def _losses(guard: WhiteBox, rows: Sequence[list[int]]) -> list[float]:
    """Return the losses of a batch, padded on the right."""
    device = guard.model.device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    mask = torch.arange(longest, device=device)[None, :] < lengths[:, None]
    hidden = guard.model.get_decoder()(ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    read = lengths[:, None] - guard.read + torch.arange(guard.read, device=device)[None, :]
    values: list[float] = guard.verdict(hidden[torch.arange(len(rows), device=device)[:, None], read]).tolist()
    return values


def of_classifier(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Callable[[Example], str]) -> WhiteBox:
    """Return an opened classifier with one output, the logit of "harmful", read at an appended end token.

    Args:
        model: a ``LlamaForSequenceClassification``.
        tokenizer: its tokenizer.
        texts: returns a row as text.
    """
    end = str(tokenizer.eos_token)

    def encode(turns: Sequence[Example]) -> list[list[int]]:
        return [list(tokenizer(texts(turn) + end)["input_ids"]) for turn in turns]

    def verdict(states: Tensor) -> Tensor:
        logits: Tensor = model.score(states[:, 0])[:, 0].float()
        return torch.nn.functional.softplus(logits)

    return WhiteBox(model.requires_grad_(False).eval(), tokenizer, encode, 1, verdict)


def of_writer(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: Callable[[Example], list[int]], harmless: Sequence[int]
) -> WhiteBox:
    """Return an opened causal model that writes its verdict.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt: returns the tokens of a row's prompt, which end where the verdict begins.
        harmless: the tokens of the verdict "harmless".
    """
    target = torch.tensor(list(harmless), device=model.device)

    def encode(turns: Sequence[Example]) -> list[list[int]]:
        return [[*prompt(turn), *harmless[:-1]] for turn in turns]

    def verdict(states: Tensor) -> Tensor:
        likely: Tensor = model.get_output_embeddings()(states).float().log_softmax(-1)
        return -likely[:, torch.arange(len(target)), target].sum(-1)

    return WhiteBox(model.requires_grad_(False).eval(), tokenizer, encode, len(harmless), verdict)
