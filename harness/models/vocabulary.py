"""Vocabularies: the ordinary tokens of a model and their ids, as far as they are known before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class HasVocabulary(Protocol):
    """A source whose vocabulary follows from its settings."""

    def vocabulary(self) -> Mapping[str, int]:
        """Return the ids of all tokens."""
        ...


@runtime_checkable
class HasTokenizerFolder(Protocol):
    """A source whose tokenizer may be on this machine."""

    def tokenizer_folder(self) -> Path | None:
        """Return the folder of the tokenizer; None if it is not on this machine."""
        ...


def vocabulary_of(source: object) -> Mapping[str, int] | None:
    """Return the vocabulary of a source of a model; None if it cannot be known without downloading it."""
    if isinstance(source, HasVocabulary):
        return source.vocabulary()
    folder = source.tokenizer_folder() if isinstance(source, HasTokenizerFolder) else None
    return None if folder is None else stored_vocabulary(folder)


def stored_vocabulary(folder: Path) -> Mapping[str, int] | None:
    """Return the vocabulary of a saved tokenizer, without tokens added to it later; None if it is in another format."""
    try:
        entries = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(entries, dict):
        return entries
    return {token: index for index, (token, _) in enumerate(entries)}
