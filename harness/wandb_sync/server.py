"""Queries a W&B server for the runs that it has, before and after an upload: an upload may fail silently.

Uses a GraphQL query that every W&B-compatible server supports, with limits on time and size, and independent of the
client library's state.
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
from harness.wandb_sync.run import DIGEST, WITH_ADAPTER, RunRecord

if TYPE_CHECKING:
    from httpx import Response

TIMEOUT_SECONDS = 15.0
"""Timeout for one complete response."""
MOST_BYTES = 64 * 2**20
"""Maximum size of one response, about a thousand times that of a query for 40 runs."""
BATCH = 40
"""Number of runs per query."""


LOG_IN = " Log in again: `wandb login --relogin`."


class Busy(TrackingError):
    """The server asked to retry later (``Retry-After``).

    Attributes:
        seconds: the delay that it asked for.
    """

    def __init__(self, message: str, seconds: float) -> None:
        """Keep the delay."""
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class ServerRun:
    """State of one run on the server.

    Attributes:
        state: the server's state of the run.
        shown: the digest in its config and summary; empty unless both are equal.
        step: the last step of its curve; -1 if there is none.
    """

    state: str = ""
    shown: str = ""
    step: int = -1

    def shows(self, record: RunRecord) -> bool:
        """Return whether the run is finished and has the contents of a record."""
        return self.state == "finished" and self.shown in (record.digest, record.digest + WITH_ADAPTER)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Read access to a project of a W&B server.

    Attributes:
        address: the server's URL, as returned by ``harness.wandb_sync.client.address``.
        key: the API key.
        project: name of the project.
        entity: owner of the project; None is the owner of the key.
    """

    address: str
    key: str = field(repr=False)
    project: str
    entity: str | None = None

    def owner(self) -> str:
        """Return the entity; if it is None, the server's default for the key.

        Raises:
            TrackingError: the server is unreachable, rejects the key, or does not return an owner.
        """
        viewer = self._query("query Viewer { viewer { entity username } }", {}).get("viewer")
        if not viewer:
            raise TrackingError(f"W&B at {self.address} does not accept the key; `wandb login --relogin` sets it.")
        owner = self.entity or viewer.get("entity") or viewer.get("username")
        if not owner:
            raise TrackingError(f"W&B at {self.address} returns no owner of the key; set `tracker.entity`.")
        return str(owner)

    def runs(self, ids: Iterable[str]) -> dict[str, ServerRun]:
        """Return the state of those runs that exist on the server, by id.

        Raises:
            TrackingError: the server is unreachable or rejects the query.
        """
        owner, wanted = self.owner(), list(dict.fromkeys(ids))
        found: dict[str, ServerRun] = {}
        for start in range(0, len(wanted), BATCH):
            # The ids are hexadecimal digits: they need no escaping.
            selection = " ".join(
                f'r{index}: run(name: "{name}") {{ name state config summaryMetrics }}'
                for index, name in enumerate(wanted[start : start + BATCH])
            )
            project = f"project(name: $project, entityName: $entity) {{ {selection} }}"
            query = f"query Runs($project: String!, $entity: String!) {{ {project} }}"
            runs = self._query(query, {"project": self.project, "entity": owner}).get("project") or {}
            try:
                found |= {run["name"]: _server_run(run) for run in runs.values() if run}
            except (AttributeError, KeyError, TypeError, ValueError):
                raise self._malformed() from None
        return found

    def _query(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            response, content = asyncio.run(self._post({"query": query, "variables": variables}))
        except TimeoutError:
            raise TrackingError(
                f"W&B at {self.address} does not answer: no complete response within {TIMEOUT_SECONDS:g} s."
            ) from None
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise TrackingError(
                f"W&B at {self.address} does not answer: {str(error) or type(error).__name__}."
            ) from None
        if response.is_error or response.is_redirect:
            raise self._http_error(response)
        try:
            answer = json.loads(content)
        except ValueError:
            raise self._malformed() from None
        if not isinstance(answer, dict) or not isinstance(data := answer.get("data"), dict):
            raise self._malformed()
        return data

    async def _post(self, request: Mapping[str, Any]) -> tuple[Response, bytes]:
        """Post a request. Redirects are not followed: they would send the key to another address."""
        import httpx

        client = httpx.AsyncClient(
            auth=("api", self.key),
            timeout=None,  # asyncio.timeout below limits the whole response; httpx limits each read only
            verify=ssl.create_default_context(),  # the system's certificates, which httpx does not use by default
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

    def _http_error(self, response: Response) -> TrackingError:
        status = f"W&B at {self.address} answers {response.status_code}"
        if location := response.headers.get("Location"):
            advice = "to which the key is not sent. If that is your server, set WANDB_BASE_URL to it."
            return TrackingError(f"{status} and redirects to {location}, {advice}")
        status = f"{status} {response.reason_phrase}".rstrip()
        if seconds := _retry_after(response.headers.get("Retry-After", "")):
            return Busy(f"{status}, and asks to retry after {seconds:g} s.", seconds)
        # Advise a new login only for a rejected key, not for a failing server.
        return TrackingError(f"{status}.{LOG_IN if response.status_code in (401, 403) else ''}")

    def _malformed(self) -> TrackingError:
        return TrackingError(f"W&B at {self.address} does not answer like a W&B server.")


def _retry_after(text: str) -> float:
    """Return the delay of a ``Retry-After`` header in seconds, given as a number or a date; 0 if it is neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, round((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()))
    # TypeError: a date without a time zone.
    except (ValueError, TypeError):
        return 0.0


def login(address: str) -> str:
    """Return the API key for a server: ``WANDB_API_KEY``, or the one in netrc for its host.

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


def _server_run(run: Mapping[str, Any]) -> ServerRun:
    config = json.loads(run["config"] or "{}").get(DIGEST, {})
    summary = json.loads(run["summaryMetrics"] or "{}")
    shown = config.get("value") if isinstance(config, dict) else config
    return ServerRun(
        state=run["state"] or "",
        shown=shown if shown and shown == summary.get(DIGEST) else "",
        step=int(summary.get(STEP, -1)),
    )
