"""Settings of the W&B sync. Stages write their curves to the store, and W&B receives a copy from there.

No stage depends on W&B: a separate process (``harness.wandb_sync``) uploads during and after the run.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

from harness.errors import Problem
from harness.tracking.jsonl import Jsonl, JsonlTracker

PROJECT = "harness"
"""The project if neither the settings nor ``WANDB_PROJECT`` name one."""


@final
@dataclass(frozen=True, kw_only=True)
class Wandb:
    """What is uploaded to W&B, and to which project. Credentials come from ``WANDB_API_KEY`` or netrc only.

    Attributes:
        mode: ``online`` uploads while the sweep runs; ``offline`` uploads only on ``harness sync``; ``disabled`` never
            uploads; null is ``WANDB_MODE`` if set, otherwise ``online``.
        project: null is ``WANDB_PROJECT`` if set, otherwise ``harness``.
        entity: user or team; null is ``WANDB_ENTITY`` if set, otherwise the owner of the API key.
        artifacts: upload trained adapters as artifacts with lineage.
        samples: upload a table of generations with each cell.
        redact: leave out the text of generations; their scores and lengths are uploaded.
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
            Problem(name, f"{value!r} is not valid; expected up to 128 characters without / \\ # ? % : or spaces")
            for name, value in named
            if value is not None and not re.fullmatch(r"[^/\\#?%:\s]{1,128}", value)
        ]

    def open(self, *, key: str, kind: str, work: Path) -> JsonlTracker:
        """Append to the stage's curve, from which the uploader reads."""
        return Jsonl().open(key=key, kind=kind, work=work)

    @property
    def effective_mode(self) -> str:
        """The mode, with environment variables resolved."""
        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        return {"dryrun": "offline"}.get(mode, mode)

    @property
    def effective_project(self) -> str:
        """The project, with environment variables resolved."""
        return self.project or os.environ.get("WANDB_PROJECT") or PROJECT

    @property
    def effective_entity(self) -> str | None:
        """The entity, with environment variables resolved; None is the owner of the API key."""
        return self.entity or os.environ.get("WANDB_ENTITY") or None
