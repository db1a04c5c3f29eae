"""Representations and gradients of encoded examples under a victim, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.corpora.encode import IGNORED, Encoded
from harness.errors import DataError
from harness.protocols import Victim

if TYPE_CHECKING:
    from torch import Tensor

    from harness.corpora.examples import Example


class VictimReader:
    """Reads examples with the victim, whose weights it does not change.

    Args:
        victim: the aligned model; gradients are with respect to its trainable parameters, those of the adapter.
        device: a torch device string.
    """

    def __init__(self, victim: Victim, device: str) -> None:
        """Find the trainable parameters."""
        self._victim = victim
        self._device = device
        self._trainables = [each for each in victim.model.parameters() if each.requires_grad]

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Encode examples as the fine-tuning does; None for one whose prompt leaves no room for an answer."""
        return self._victim.encoding.encode_each(self._victim.tokenizer, examples)

    def anchors(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode examples to compare with; those without room for an answer are left out.

        Raises:
            DataError: none is left.
        """
        encoded = [row for row in self.encode(examples) if row is not None]
        if not encoded:
            raise DataError(
                f"none of the {len(examples)} harmful examples that the attack compares with leaves room for an answer "
                f"within {self._victim.encoding.max_length} tokens; raise `model.encoding.max_length`"
            )
        return encoded

    def representation(self, row: Encoded) -> Tensor:
        """Return the hidden state that the head reads at the last token, float32 ``[width]``."""
        import torch

        batch = self._batch(row)
        # Not `output_hidden_states`: the library then leaves its hooks on the layers of the base, which is shared.
        decoder = self._victim.model.get_decoder()  # type: ignore[operator]
        with torch.no_grad():
            read = decoder(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        state: Tensor = read.last_hidden_state[0, -1]
        return state.float()

    def gradient(self, row: Encoded, *, answer_tokens: int | None = None) -> Tensor:
        """Return the gradient of the mean loss over the answer, float32, flat.

        Args:
            row: the example.
            answer_tokens: how many tokens of the answer count; None is all of them.
        """
        import torch

        loss = self._victim.model(**self._batch(row, answer_tokens)).loss
        return torch.cat([each.flatten().float() for each in torch.autograd.grad(loss, self._trainables)])

    def _batch(self, row: Encoded, answer_tokens: int | None = None) -> dict[str, Tensor]:
        from harness.corpora.batches import collate

        if answer_tokens is not None:
            end = len(row.labels) - answer_length(row) + answer_tokens
            row = Encoded(row.input_ids, [*row.labels[:end], *[IGNORED] * len(row.labels[end:])])
        return {name: each.to(self._device) for name, each in collate([row], 0).items()}


def answer_length(row: Encoded) -> int:
    """Return the number of supervised tokens, which are the last ones."""
    return sum(label != IGNORED for label in row.labels)
