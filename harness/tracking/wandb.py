"""Settings of the W&B sync. Stages write their curves to the store as always; W&B gets its copy from there.

No stage knows of W&B: uploading is the work of a separate process (``harness.wandb_sync``), during the run and after.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

from harness.errors import Problem
from harness.tracking.jsonl import Jsonl, JsonlTracker

PROJECT = "harness"
"""The project where neither the settings nor ``WANDB_PROJECT`` name one."""


@final
@dataclass(frozen=True, kw_only=True)
class Wandb:
    """What is mirrored to W&B, and where to. Login comes from ``WANDB_API_KEY`` or netrc, never from here.

    Attributes:
        mode: ``online`` sends while the sweep runs; ``offline`` sends nothing; ``disabled`` never sends, not even on
            ``harness sync``; null follows ``WANDB_MODE``, and is ``online`` where that is not set.
        project: null follows ``WANDB_PROJECT``, and is ``harness`` where that is not set.
        entity: the user or team; null follows ``WANDB_ENTITY``, and is the key's own where that is not set.
        artifacts: send trained adapters as artifacts with lineage.
        samples: send a table of answers with each cell.
        redact: keep the words of these answers out; what is left is their grades and lengths.
    """

    name: ClassVar[str] = "wandb"
    version: ClassVar[int] = 1
    mode: Literal["online", "offline", "disabled"] | None = None
    project: str | None = None
    entity: str | None = None
    artifacts: bool = False
    samples: bool = False
    redact: bool = True

    def problems(self) -> list[Problem]:
        """Range errors."""
        named = (("project", self.project), ("entity", self.entity))
        return [
            Problem(name, f"{value!r} cannot name one; expected up to 128 characters without / \\ # ? % : or spaces")
            for name, value in named
            if value is not None and not re.fullmatch(r"[^/\\#?%:\s]{1,128}", value)
        ]

    def open(self, *, key: str, kind: str, work: Path) -> JsonlTracker:
        """Append to the stage's curve, which is mirrored from there."""
        return Jsonl().open(key=key, kind=kind, work=work)

    @property
    def effective_mode(self) -> str:
        """The mode after the environment was asked."""
        said = self.mode or (os.environ.get("WANDB_MODE") or "online")
        return {"dryrun": "offline"}.get(said, said)

    @property
    def effective_project(self) -> str:
        """The project after the environment was asked."""
        return self.project or os.environ.get("WANDB_PROJECT") or PROJECT

    @property
    def effective_entity(self) -> str | None:
        """The entity after the environment was asked; None is that of the key."""
        return self.entity or os.environ.get("WANDB_ENTITY") or None
