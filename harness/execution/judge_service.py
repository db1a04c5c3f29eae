"""The service that a judge asks: its address, its prices, and limits on requests and cost. Not part of identity.

The cluster has these settings, because they belong to where stages run. They reach a stage through the environment, as
the interpreter of vLLM does, so that every process that runs stages has them. The API key is no setting: it is read
from ``OPENAI_API_KEY`` when a request is made, and is written nowhere.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, final
from urllib.parse import urlsplit

from harness.engine.checks import counts, not_negative, positive
from harness.errors import ConfigError, Problem

JUDGE_SERVICE = "HARNESS_JUDGE_SERVICE"
"""The environment variable that holds the settings, as JSON, in the processes that run stages."""
BASE_URL = "OPENAI_BASE_URL"
API_KEY = "OPENAI_API_KEY"
OPENAI = "https://api.openai.com/v1"


@final
@dataclass(frozen=True, kw_only=True)
class JudgeService:
    """An OpenAI-compatible service.

    Attributes:
        url: base URL of the service, up to and including ``/v1``; null is ``OPENAI_BASE_URL`` if set, otherwise OpenAI.
        requests: maximum number of requests of all stages of a store, retries included; null is no limit.
        cost: maximum cost of these requests, in the currency of the prices; null is no limit.
        input_price: price of a million input tokens.
        output_price: price of a million output tokens.
        parallel: concurrent requests of one stage.
        timeout: seconds within which a response must be complete.
    """

    name: ClassVar[str] = "judge_service"
    version: ClassVar[int] = 1
    url: str | None = None
    requests: int | None = None
    cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    parallel: int = 8
    timeout: float = 120.0

    def problems(self) -> list[Problem]:
        """Range errors, and an address that cannot be used."""
        found = [
            *not_negative(self, "requests", "cost", "input_price", "output_price"),
            *counts(self, "parallel"),
            *positive(self, "timeout"),
        ]
        if self.url and (problem := _url_problem(self.url)):
            found.append(Problem("url", problem))
        if self.cost is not None and None in (self.input_price, self.output_price):
            found.append(
                Problem("cost", "needs `input_price` and `output_price`, the prices of a million tokens; expected both")
            )
        return found

    @property
    def address(self) -> str:
        """The base URL in use, without a trailing slash."""
        return (self.url or os.environ.get(BASE_URL, "").strip() or OPENAI).rstrip("/")

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """Return the price of a request; 0 without prices."""
        return ((self.input_price or 0.0) * input_tokens + (self.output_price or 0.0) * output_tokens) / 1e6

    def problem(self) -> str:
        """Return why the service cannot be asked from this machine; empty if it may be possible."""
        if problem := _url_problem(self.address):
            return f"the address of the judge's service ({BASE_URL}) {problem}"
        key = os.environ.get(API_KEY, "").strip()
        if not key and self.address == OPENAI:
            return (
                f"the judge asks {OPENAI}, and {API_KEY} is not set; expected the key in that environment variable, or "
                f"another service in `cluster.judge_service.url` or {BASE_URL}"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            return f"{API_KEY} has characters that a key cannot have; expected printable ASCII without spaces"
        return ""


def to_environment(service: JudgeService) -> None:
    """Hand the settings to the stages of this process and of those that it starts."""
    os.environ[JUDGE_SERVICE] = json.dumps(asdict(service))


def from_environment() -> JudgeService:
    """Return the settings for the stages of this process; the defaults if none were handed over.

    Raises:
        ConfigError: ``HARNESS_JUDGE_SERVICE`` was set by hand, and is wrong.
    """
    text = os.environ.get(JUDGE_SERVICE, "").strip() or "{}"
    try:
        found = json.loads(text)
        service = JudgeService(**found) if isinstance(found, Mapping) else None
        problems = ["it is not a JSON object"] if service is None else list(map(str, service.problems()))
    # TypeError: an unknown setting, or a value of the wrong type.
    except (ValueError, TypeError) as error:
        service, problems = None, [str(error)]
    if service is None or problems:
        expected = "expected a JSON object with settings of `cluster.judge_service`"
        raise ConfigError([f"{JUDGE_SERVICE}: {problem}; {expected}" for problem in problems])
    return service


def _url_problem(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError):  # AttributeError: not a text
        known = False
    if not known:
        return "is not a URL; expected http(s)://HOST[:PORT]/v1"
    if parts.username or parts.password or parts.query or parts.fragment:
        # Not quoted: it may contain a secret.
        return f"contains a login, a query or a fragment; expected a plain address, and the key in {API_KEY}"
    return ""
