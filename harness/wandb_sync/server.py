"""The remote: what a W&B server says it has. Asked before and after sending, because sending alone proves nothing.

A GraphQL query that every W&B-compatible server answers: bounded in time and size, and without the state that the
client library keeps between its calls.
"""

from __future__ import annotations

import asyncio
import json
import netrc
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.errors import TrackingError
from harness.tracking.jsonl import STEP
from harness.wandb_sync.run import DIGEST, WITH_ADAPTER, Entry

if TYPE_CHECKING:
    from httpx import Response

TIMEOUT_SECONDS = 15.0
"""How long one answer may take in all, however steadily it comes in."""
MOST_BYTES = 64 * 2**20
"""How long one answer may be: what 40 runs say of themselves is a thousandth of it."""
BATCH = 40
"""How many runs are asked for at once."""


LOG_IN = " Log in again: `wandb login --relogin`."


class Busy(TrackingError):
    """The server asked for a pause.

    Attributes:
        seconds: how long it wants to be left alone.
    """

    def __init__(self, message: str, seconds: float) -> None:
        """Keep the seconds for who waits."""
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the server has of one run.

    Attributes:
        state: as the server says it.
        shown: the digest of the entry that its config and its summary show; empty unless both show the same.
        step: the last step of its curve that arrived.
    """

    state: str = ""
    shown: str = ""
    step: int = -1

    def shows(self, entry: Entry) -> bool:
        """Say whether the run is complete and is that of the entry."""
        return self.state == "finished" and self.shown in (entry.digest, entry.digest + WITH_ADAPTER)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A project of a W&B server.

    Attributes:
        address: of the server, as ``harness.wandb_sync.client.address`` gives it.
        key: the login.
        project: its name.
        entity: its owner; None is the owner of the key.
    """

    address: str
    key: str = field(repr=False)
    project: str
    entity: str | None = None

    def owner(self) -> str:
        """Return the entity, which for None is asked of the server.

        Raises:
            TrackingError: the server cannot be reached, refuses the key, or does not say.
        """
        viewer = self._answer("query Viewer { viewer { entity username } }", {}).get("viewer")
        if not viewer:
            raise TrackingError(f"W&B at {self.address} does not accept the key; `wandb login --relogin` sets it.")
        owner = self.entity or viewer.get("entity") or viewer.get("username")
        if not owner:
            raise TrackingError(f"W&B at {self.address} does not say whose key it is; set `tracker.entity`.")
        return str(owner)

    def held(self, ids: Iterable[str]) -> dict[str, Held]:
        """Return what the server has of those of the runs that it knows.

        Raises:
            TrackingError: the server cannot be reached, or refuses.
        """
        owner, wanted = self.owner(), list(dict.fromkeys(ids))
        found: dict[str, Held] = {}
        for start in range(0, len(wanted), BATCH):
            # The ids are hexadecimal digits: they need no escaping.
            asked = " ".join(
                f'r{place}: run(name: "{name}") {{ name state config summaryMetrics }}'
                for place, name in enumerate(wanted[start : start + BATCH])
            )
            project = f"project(name: $project, entityName: $entity) {{ {asked} }}"
            query = f"query Held($project: String!, $entity: String!) {{ {project} }}"
            runs = self._answer(query, {"project": self.project, "entity": owner}).get("project") or {}
            try:
                found |= {run["name"]: _held(run) for run in runs.values() if run}
            except (AttributeError, KeyError, TypeError, ValueError):
                raise self._strange() from None
        return found

    def _answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            response, content = asyncio.run(self._asked({"query": query, "variables": variables}))
        except TimeoutError:
            raise TrackingError(
                f"W&B at {self.address} does not answer: no whole answer within {TIMEOUT_SECONDS:g} s."
            ) from None
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise TrackingError(
                f"W&B at {self.address} does not answer: {str(error) or type(error).__name__}."
            ) from None
        if response.is_error or response.is_redirect:
            raise self._refusal(response)
        try:
            answer = json.loads(content)
        except ValueError:
            raise self._strange() from None
        if not isinstance(answer, dict) or not isinstance(data := answer.get("data"), dict):
            raise self._strange()
        return data

    async def _asked(self, request: Mapping[str, Any]) -> tuple[Response, bytes]:
        """Return the answer. Redirects are not followed: the key would go along to wherever an answer points."""
        import httpx

        client = httpx.AsyncClient(
            auth=("api", self.key),
            timeout=None,  # the one below is of the whole, the library's are of every single read
            verify=ssl.create_default_context(),  # the machine's certificates, as of the rest of its programs
            headers={"Accept-Encoding": "identity"},
        )
        content = bytearray()
        answer = client.stream("POST", f"{self.address}/graphql", json=request)
        async with asyncio.timeout(TIMEOUT_SECONDS), client, answer as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise TrackingError(f"W&B at {self.address} answers with more than {MOST_BYTES:,} bytes.")
        return response, bytes(content)

    def _refusal(self, response: Response) -> TrackingError:
        said = f"W&B at {self.address} answers {response.status_code}"
        if there := response.headers.get("Location"):
            advice = "where the key is not sent. If that is your server, name it in WANDB_BASE_URL."
            return TrackingError(f"{said} and leads to {there}, {advice}")
        said = f"{said} {response.reason_phrase}".rstrip()
        if seconds := _retry_after(response.headers.get("Retry-After", "")):
            return Busy(f"{said}, and wants to be left alone for {seconds:g} s.", seconds)
        # A refused key must be told from a server in trouble.
        return TrackingError(f"{said}.{LOG_IN if response.status_code in (401, 403) else ''}")

    def _strange(self) -> TrackingError:
        return TrackingError(f"W&B at {self.address} does not answer as a W&B server does.")


def _retry_after(text: str) -> float:
    """Return the seconds that a ``Retry-After`` header asks for, as a number or as a date; 0 if it says neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, round((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()))
    # A date without a zone cannot be compared with one that has it.
    except (ValueError, TypeError):
        return 0.0


def login(address: str) -> str:
    """Return the key for a server: ``WANDB_API_KEY``, or what netrc has for its host.

    Raises:
        TrackingError: there is none.
    """
    if key := os.environ.get("WANDB_API_KEY", "").strip():
        return key
    host = urlsplit(address).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        known = None
    if known is None or not known[2]:
        raise TrackingError(f"There is no key for W&B at {address}. Set WANDB_API_KEY, or run `wandb login`.")
    return known[2]


def _held(run: Mapping[str, Any]) -> Held:
    config = json.loads(run["config"] or "{}").get(DIGEST, {})
    summary = json.loads(run["summaryMetrics"] or "{}")
    shown = config.get("value") if isinstance(config, dict) else config
    return Held(
        state=run["state"] or "",
        shown=shown if shown and shown == summary.get(DIGEST) else "",
        step=int(summary.get(STEP, -1)),
    )
