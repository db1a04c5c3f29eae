"""Check of the chat templates that a sweep uses, before anything runs.

A template that is missing or has no system prompt would otherwise be noticed by the stage that needs it first: for an
encoding of the evaluation, after the training.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from harness.corpora import chat
from harness.corpora.encode import Encoding
from harness.corpora.template import Template
from harness.engine.stage import Stage, lineage
from harness.stages.base import Base


@runtime_checkable
class HasTokenizer(Protocol):
    """Optional: the origin of a model whose tokenizer can be read ahead of a run."""

    def tokenizer_folder(self) -> Path | None:
        """Return the folder of the tokenizer; None if it is not on this machine."""
        ...


def check_chat_templates(pending: Iterable[Stage]) -> None:
    """Check that tokenizers on this machine have the chat templates that stages need.

    Raises:
        ModelError: a template is missing, cannot be used, or has no system prompt although one is set.
    """
    needed: dict[tuple[Path, bool], None] = {}
    for stage in pending:
        encoding = getattr(stage, "encoding", None)
        if isinstance(encoding, Encoding) and encoding.template is Template.CHAT:
            needed |= dict.fromkeys((folder, encoding.system is not None) for folder in _tokenizers(stage))
    if not needed:
        return
    from transformers import AutoTokenizer

    for folder, system in needed:
        chat.check(AutoTokenizer.from_pretrained(folder, local_files_only=True), system=system)


def _tokenizers(stage: Stage) -> list[Path]:
    sources = [base.source for base in lineage((stage,)) if isinstance(base, Base)]
    found = [source.tokenizer_folder() for source in sources if isinstance(source, HasTokenizer)]
    return [folder for folder in found if folder is not None]
