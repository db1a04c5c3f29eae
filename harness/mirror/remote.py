"""The remote: what a W&B server says it has. Asked before and after sending, because sending alone proves nothing.

A GraphQL query that every W&B-compatible server answers, over the standard library: bounded in time, and without the
state that the client library keeps between its calls.
"""

import base64
import http.client
import json
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harness.errors import TrackingError
from harness.mirror.entry import DIGEST, WITH_ADAPTER, Entry
from harness.tracking.jsonl import STEP

TIMEOUT_SECONDS = 15.0
"""How long one answer may take."""
BATCH = 40
"""How many runs are asked for at once."""


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
        address: of the server, as ``harness.mirror.wire.address`` gives it.
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
        login = base64.b64encode(f"api:{self.key}".encode()).decode()
        request = urllib.request.Request(
            f"{self.address}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {login}"},
        )
        try:
            with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            if there := error.headers.get("Location"):
                raise TrackingError(
                    f"W&B at {self.address} answers {error.code} and leads to {there}, where the key is not sent. "
                    "If that is your server, name it in WANDB_BASE_URL."
                ) from None
            # A refused key must be told from a server in trouble.
            advice = " Log in again: `wandb login --relogin`." if error.code in (401, 403) else ""
            raise TrackingError(f"W&B at {self.address} answers {error.code} {error.reason}.{advice}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise TrackingError(f"W&B at {self.address} does not answer: {reason}.") from None
        if not isinstance(answer, dict) or not isinstance(data := answer.get("data"), dict):
            raise self._strange()
        return data

    def _strange(self) -> TrackingError:
        return TrackingError(f"W&B at {self.address} does not answer as a W&B server does.")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody: the key would go along to wherever an answer points, and what was asked would stay behind."""

    def redirect_request(self, *_: Any) -> None:
        """Leave the answer to those who handle errors."""


_OPENER = urllib.request.build_opener(_Stay)


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
