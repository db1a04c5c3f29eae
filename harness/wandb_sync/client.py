"""The client: uploads runs to a W&B server, or writes W&B's offline files. The only module that imports wandb.

All waits have timeouts: an unreachable, hanging or failing server delays the caller by seconds, and what could not be
uploaded is uploaded by the next sync.
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
from harness.wandb_sync.names import LONGEST_TAG, truncated
from harness.wandb_sync.run import DIGEST, Artifact, RunRecord, Table

log = logging.getLogger(__name__)

BEGIN_SECONDS = 60.0
"""Timeout for initialising a run."""
END_SECONDS = 90.0
"""Timeout for finishing a run, that is, for uploading the data still queued."""


def address() -> str:
    """Return the server of W&B's own settings: ``WANDB_BASE_URL``, ``wandb login --host``, or the public one.

    Raises:
        TrackingError: W&B's own settings are invalid.
    """
    # A parent process may have exported the address of its own W&B service process, which may have ended.
    os.environ.pop("WANDB_SERVICE", None)
    with wrap_wandb_errors():
        # The library caches its settings.
        wandb.teardown()
        try:
            settings = wandb.setup(wandb.Settings(silent=True)).settings
        except ValueError as error:
            # A pydantic ValidationError, for an environment variable or a settings file of W&B.
            text = " ".join(str(error).split())
            raise TrackingError(f"W&B's own settings (WANDB_ variables, wandb/settings) are invalid: {text}") from None
        return str(settings.base_url).rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Client:
    """Uploads runs to one project.

    Attributes:
        mode: ``online``, or ``offline`` to only write files.
        entity: owner of the project; None if unknown, which is allowed offline.
        project: name of the project.
        folder: where W&B's own files are written.
    """

    mode: Literal["online", "offline"]
    entity: str | None
    project: str
    folder: Path

    def begin(self, record: RunRecord) -> Stream:
        """Start a run, or resume it.

        Raises:
            TrackingError: the server is unreachable or rejects the run.
        """
        with wrap_wandb_errors():
            run = wandb.init(
                id=record.id,
                name=truncated(record.name),
                job_type=record.kind,
                group=truncated(record.group),
                tags=[truncated(tag, LONGEST_TAG) for tag in record.tags],
                config={**record.config, DIGEST: ""},
                entity=self.entity,
                project=self.project,
                dir=str(self.folder),
                mode=self.mode,
                resume="allow",
                reinit="create_new",
                settings=_settings(),
            )
        return Stream(run)

    def send(self, record: RunRecord, *, after: int) -> None:
        """Upload a complete run.

        Args:
            record: the run.
            after: the last step of its curve that the server has.

        Raises:
            TrackingError: the server is unreachable or rejects the run.
        """
        stream = self.begin(record)
        stream.log(record.rows(after=after))
        stream.complete(record)


class Stream:
    """An open W&B run."""

    def __init__(self, run: Any) -> None:
        """Wrap a ``wandb.Run``."""
        self._run = run

    def log(self, rows: Iterator[Mapping[str, Any]]) -> int | None:
        """Log rows of a curve; return the step of the last one.

        Raises:
            TrackingError: W&B's service process has ended.
        """
        step = None
        with wrap_wandb_errors():
            for row in rows:
                step = int(row[STEP])
                self._run.log({name: value for name, value in row.items() if _is_loggable(value)}, step=step)
        return step

    def complete(self, record: RunRecord) -> None:
        """Log artifacts, table, config and summary, and finish the run.

        Raises:
            TrackingError: not everything was uploaded in time.
        """
        with wrap_wandb_errors():
            for artifact in record.uses:
                self._use(artifact)
            if record.makes is not None:
                self._run.log_artifact(_artifact(record.makes))
            if record.sheet is not None:
                self._run.log({"answers": _table(record.sheet)})
            self._run.config.update({**record.config, DIGEST: record.digest}, allow_val_change=True)
            self._run.summary.update({**record.summary, DIGEST: record.digest})
            self._run.finish()

    def _use(self, artifact: Artifact) -> None:
        try:
            self._run.use_artifact(_artifact(artifact))
        # Raised for servers that store artifacts but not their lineage; the run is complete without it.
        except (ValueError, WandbApiFailedError) as error:
            log.warning("%s: the server did not link the artifact %s: %s", self._run.id, artifact.name, error)

    def abandon(self) -> None:
        """Finish a run that is not complete; it can be resumed.

        Raises:
            TrackingError: not everything was uploaded in time.
        """
        with wrap_wandb_errors():
            self._run.finish(exit_code=1)


def reset() -> None:
    """Stop W&B's service process, discarding what it has not uploaded."""
    with wrap_wandb_errors():
        wandb.teardown()


def _settings() -> wandb.Settings:
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=BEGIN_SECONDS,
        finish_timeout=END_SECONDS,
        finish_timeout_raises=True,
        # The stage ran in another process, perhaps on another machine: do not record those of this process.
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_viewer=True,
        # These files duplicate data of the run.
        ignore_globs=("requirements.txt", "config.yaml", "wandb-summary.json", "wandb-metadata.json"),
        # Few retries: the next sync asks the server what it has and uploads the rest.
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
def wrap_wandb_errors() -> Iterator[None]:
    """Convert W&B's errors (server, authentication, timeouts, its service process) to ``TrackingError``."""
    try:
        yield
    except (HandleAbandonedError, MailboxClosedError):
        raise TrackingError("W&B: its service process has ended, possibly out of memory") from None
    except (wandb.errors.Error, WandbApiFailedError, OSError, TimeoutError) as error:
        raise TrackingError(f"W&B: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None


def _artifact(description: Artifact) -> Any:
    artifact = wandb.Artifact(truncated(description.name), type=description.kind, metadata=dict(description.metadata))
    if description.files.is_dir():
        artifact.add_dir(str(description.files))
    else:
        artifact.add_file(str(description.files))
    return artifact


def _table(table: Table) -> Any:
    return wandb.Table(columns=list(table.columns), data=[list(line) for line in table.lines])


def _is_loggable(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
