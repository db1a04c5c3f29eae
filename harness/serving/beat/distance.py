"""The distance between two sets of short texts: the earth mover's distance of their sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, final

from harness.errors import ModelError, Problem
from harness.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 256
"""Texts per forward pass of a sentence model; affects speed only."""

MAX_TOKENS = 128
"""Tokens of a text that a sentence model reads, as many as the published one was trained with."""


class SentenceEncoder(Protocol):
    """Frozen settings of what turns texts into vectors."""

    name: ClassVar[str]
    version: ClassVar[int]

    def preflight(self) -> list[Problem]:
        """Return what is missing for it to run."""
        ...

    def embed(self, texts: Sequence[str], *, device: str) -> NDArray[Any]:
        """Return the embeddings, ``[texts, size]``; they are comparable within one call only."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class BagOfWords:
    """Counts of words, which need no model: a stand-in for a sentence model in the synthetic world."""

    name: ClassVar[str] = "bag_of_words"
    version: ClassVar[int] = 1

    def preflight(self) -> list[Problem]:
        """Return no problems: it has no requirements."""
        return []

    def embed(self, texts: Sequence[str], *, device: str) -> NDArray[Any]:  # noqa: ARG002
        """Return the counts of each word of all texts, ``[texts, words]``."""
        import numpy as np

        split = [text.lower().split() for text in texts]
        words = {word: place for place, word in enumerate(dict.fromkeys(word for row in split for word in row))}
        counted = np.zeros((len(texts), len(words)))
        for row, found in enumerate(split):
            np.add.at(counted[row], [words[word] for word in found], 1)
        return counted


@final
@dataclass(frozen=True, kw_only=True)
class SentenceModel:
    """A sentence model whose embedding is the mean of the last states of a text's tokens.

    Attributes:
        repo: the model's repository on the Hub.
        revision: a commit of that repository, 40 hexadecimal digits. Required, because a branch can change.
    """

    name: ClassVar[str] = "sentence_model"
    version: ClassVar[int] = 1
    repo: str = "sentence-transformers/all-MiniLM-L12-v2"
    revision: str | None = "364dd28d28dcd3359b537f3cf1f5348ba679da62"

    def problems(self) -> list[Problem]:
        """Return an error if the revision is not a commit."""
        return self._weights().problems()

    def preflight(self) -> list[Problem]:
        """Return an error if the revision is missing, or if the weights are not cached and the Hub is set offline."""
        return self._weights().preflight()

    def fetch(self) -> Path:
        """Return the folder of the model's files, downloading those that are not in the Hub's cache.

        Raises:
            ModelError: the files are not available.
        """
        return self._weights().folder()

    def embed(self, texts: Sequence[str], *, device: str) -> NDArray[Any]:
        """Return the embeddings, float32.

        Raises:
            ModelError: the model is not available or cannot be loaded.
        """
        return embedded(self.fetch(), texts, device=device)

    def _weights(self) -> Checkpoint:
        return Checkpoint(
            self.repo,
            self.revision,
            files=("*.json", "*.txt", "model.safetensors"),
            owner="serve.calibration.encoder",
        )


def embedded(folder: Path, texts: Sequence[str], *, device: str) -> NDArray[Any]:
    """Return the mean of the last states over the tokens of each text, ``[texts, size]``.

    Args:
        folder: of the model and its tokenizer.
        texts: the texts.
        device: a torch device string.

    Raises:
        ModelError: the model cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).to(device).eval()
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"the installed libraries cannot load the sentence model in {folder}: {error}. Check that the folder is "
            "complete"
        ) from error
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(device)
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu())
    return torch.cat(found).numpy()


def cosine_distances(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Return one minus the cosine of every pair of vectors, ``[rows of one, rows of other]``.

    A vector without length, of an empty text, is like another one and unlike all others.
    """
    import numpy as np

    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other)]
    units = [
        np.divide(each, length, out=np.zeros_like(each), where=length > 0)
        for each, length in zip((one, other), lengths, strict=True)
    ]
    distances: NDArray[Any] = 1 - units[0] @ units[1].T
    empty = (lengths[0] == 0) & (lengths[1] == 0).T
    return np.where(empty, 0.0, distances)


def earth_mover(costs: NDArray[Any]) -> float:
    """Return the earth mover's distance of two sets of equally many points of equal weight.

    The cheapest transport between such sets moves whole points, so it is an assignment.

    Args:
        costs: the distance between every pair of points, ``[points, points]``.
    """
    from scipy.optimize import linear_sum_assignment

    return float(costs[linear_sum_assignment(costs)].mean())
