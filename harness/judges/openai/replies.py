"""Replies of a service, kept in the store: a request that was answered once is not paid for again.

One file per request, named by the hash of the request (model, messages, decoding) and written atomically, so that any
number of workers can share the folder. A file that cannot be read counts as absent and is replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.engine.files import read_json, write_json, writing
from harness.errors import UnreadableFile

log = logging.getLogger(__name__)

CONTENT_FILTER = "content_filter"
TOO_LONG = "too_long"
LENGTH = "length"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a service answered to a request.

    Attributes:
        text: the text of the reply; empty if there is none.
        refusal: the model's statement that it does not reply, where the service reports one separately.
        finish: why the reply ends: ``stop``, ``length``, ``content_filter``; ``too_long`` if the request exceeds the
            model's context.
        model: the model that replied, as the service names it.
        input_tokens: tokens of the request; None if the service does not report them.
        output_tokens: tokens of the reply.
    """

    text: str
    refusal: str = ""
    finish: str = ""
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def rejected(self) -> bool:
        """Whether the service did not let the request through to a model; with other settings it may."""
        return not self.model and self.finish in (TOO_LONG, CONTENT_FILTER)


def request_id(request: Mapping[str, Any]) -> str:
    """Return the hash that identifies a request."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """The replies in a folder.

    Args:
        folder: the folder; created when the first reply is kept.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder."""
        self._folder = folder

    def get(self, request: str) -> Reply | None:
        """Return the reply to a request, by the request's hash; None if there is none that still holds."""
        path = self._path(request)
        if not path.exists():
            return None
        try:
            reply = Reply(**read_json(path))
        # TypeError: JSON of another form.
        except (UnreadableFile, TypeError) as error:
            log.warning("a stored reply of the judge cannot be read and is asked for again: %s (%s)", path, error)
            return None
        return None if reply.rejected else reply

    def put(self, request: str, reply: Reply) -> None:
        """Keep a reply.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self._path(request)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(reply))

    def _path(self, request: str) -> Path:
        return self._folder / request[:2] / f"{request}.json"
