"""The wire: sends runs to a W&B server, or writes them as W&B's offline files. The only module that imports wandb.

Every wait is bounded: a server that is gone, hangs or refuses costs seconds, and what it missed is sent another time.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from harness.errors import TrackingError
from harness.tracking.jsonl import STEP
from harness.wandb_sync.names import LONGEST_TAG, fitted
from harness.wandb_sync.run import DIGEST, Artifact, Entry, Sheet

log = logging.getLogger(__name__)

BEGIN_SECONDS = 60.0
"""How long a run may take to begin."""
END_SECONDS = 90.0
"""How long a run may take to end: to send what it still has."""


def address() -> str:
    """Return the server that W&B's own settings name: ``WANDB_BASE_URL``, ``wandb login --host``, or the public one.

    Raises:
        TrackingError: W&B does not take its own settings.
    """
    # A process that started this one may have left the name of its own W&B process, which need not live any more.
    os.environ.pop("WANDB_SERVICE", None)
    with refusals():
        # The library keeps the settings that it once read.
        wandb.teardown()
        try:
            settings = wandb.setup(wandb.Settings(silent=True)).settings
        except ValueError as error:
            # Of pydantic: a variable or a file of W&B's own holds what it does not take.
            words = " ".join(str(error).split())
            raise TrackingError(f"W&B's own settings (WANDB_ variables, wandb/settings) are wrong: {words}") from None
        return str(settings.base_url).rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A way to one project.

    Attributes:
        mode: ``online``, or ``offline`` for files alone.
        entity: its owner; None where nobody can be asked.
        project: its name.
        folder: where W&B's own files are written.
    """

    mode: Literal["online", "offline"]
    entity: str | None
    project: str
    folder: Path

    def begin(self, entry: Entry) -> Stream:
        """Begin a run, or go on with it.

        Raises:
            TrackingError: the server cannot be reached, or refuses.
        """
        with refusals():
            run = wandb.init(
                id=entry.id,
                name=fitted(entry.name),
                job_type=entry.kind,
                group=fitted(entry.group),
                tags=[fitted(tag, LONGEST_TAG) for tag in entry.tags],
                config={**entry.config, DIGEST: ""},
                entity=self.entity,
                project=self.project,
                dir=str(self.folder),
                mode=self.mode,
                resume="allow",
                reinit="create_new",
                settings=_settings(),
            )
        return Stream(run)

    def send(self, entry: Entry, *, after: int) -> None:
        """Send a complete run.

        Args:
            entry: the run.
            after: the last step of its curve that has arrived already.

        Raises:
            TrackingError: the server cannot be reached, or refuses.
        """
        stream = self.begin(entry)
        stream.log(entry.rows(after=after))
        stream.complete(entry)


class Stream:
    """A run that has begun."""

    def __init__(self, run: Any) -> None:
        """Wrap it."""
        self._run = run

    def log(self, rows: Iterator[Mapping[str, Any]]) -> int | None:
        """Log rows of a curve; return the step of the last one.

        Raises:
            TrackingError: W&B's own process is gone.
        """
        step = None
        with refusals():
            for row in rows:
                step = int(row[STEP])
                self._run.log({name: value for name, value in row.items() if _shown(value)}, step=step)
        return step

    def complete(self, entry: Entry) -> None:
        """Say everything that is known at the end, and end.

        Raises:
            TrackingError: not everything was sent in time.
        """
        with refusals():
            for parcel in entry.uses:
                self._use(parcel)
            if entry.makes is not None:
                self._run.log_artifact(_artifact(entry.makes))
            if entry.sheet is not None:
                self._run.log({"answers": _table(entry.sheet)})
            self._run.config.update({**entry.config, DIGEST: entry.digest}, allow_val_change=True)
            self._run.summary.update({**entry.summary, DIGEST: entry.digest})
            self._run.finish()

    def _use(self, parcel: Artifact) -> None:
        try:
            self._run.use_artifact(_artifact(parcel))
        # The library's words for a server that keeps artifacts but not who used them: the run is complete without.
        except (ValueError, WandbApiFailedError) as error:
            log.warning("%s: the server did not link the artifact %s: %s", self._run.id, parcel.name, error)

    def abandon(self) -> None:
        """End a run that is not complete; it can go on later.

        Raises:
            TrackingError: not everything was sent in time.
        """
        with refusals():
            self._run.finish(exit_code=1)


def reset() -> None:
    """Stop W&B's own process with whatever it still tries to send."""
    with refusals():
        wandb.teardown()


def _settings() -> wandb.Settings:
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=BEGIN_SECONDS,
        finish_timeout=END_SECONDS,
        finish_timeout_raises=True,
        # The run describes a stage that may have run elsewhere: this process, its machine and its code are not it.
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_viewer=True,
        # Files that only repeat what the run holds.
        ignore_globs=("requirements.txt", "config.yaml", "wandb-summary.json", "wandb-metadata.json"),
        # Few retries: what does not arrive is sent again by the next pass, which first asks what has arrived.
        x_graphql_retry_max=2,
        x_graphql_retry_wait_max_seconds=3,
        x_graphql_timeout_seconds=20,
        x_file_stream_retry_max=3,
        x_file_stream_retry_wait_max_seconds=3,
        x_file_stream_timeout_seconds=20,
        x_file_transfer_retry_max=2,
        x_file_transfer_retry_wait_max_seconds=3,
    )


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what W&B raises about servers, keys and time, and about its own process, into a ``TrackingError``."""
    try:
        yield
    except (HandleAbandonedError, MailboxClosedError):
        raise TrackingError("W&B: its own process has ended; memory may have run out") from None
    except (wandb.errors.Error, WandbApiFailedError, OSError, TimeoutError) as error:
        raise TrackingError(f"W&B: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None


def _artifact(parcel: Artifact) -> Any:
    artifact = wandb.Artifact(fitted(parcel.name), type=parcel.kind, metadata=dict(parcel.metadata))
    if parcel.files.is_dir():
        artifact.add_dir(str(parcel.files))
    else:
        artifact.add_file(str(parcel.files))
    return artifact


def _table(sheet: Sheet) -> Any:
    return wandb.Table(columns=list(sheet.columns), data=[list(line) for line in sheet.lines])


def _shown(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
