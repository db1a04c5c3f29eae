"""Chat completions of an OpenAI-compatible service: retries, deadlines, and errors that never contain the key."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from harness.errors import ServiceError, Stopped
from harness.execution.judge_service import API_KEY, JudgeService
from harness.judges.openai.replies import CONTENT_FILTER, TOO_LONG, Reply, ReplyCache, request_id
from harness.judges.openai.spending import Spending

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Attempts per request; with the pauses between them, a service may be away for about two minutes."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
PATIENCE_SECONDS = 300.0
"""The longest ``Retry-After`` that is waited for: a quota that returns tomorrow ends the stage."""
MOST_BYTES = 8 * 2**20
"""Maximum size of a response."""
MESSAGE_TOKENS = 16
"""Upper bound of the tokens that a chat template adds to a message."""
_FILTERED = {"content_filter", "content_policy_violation"}
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
"""Codes or types of OpenAI and llama.cpp."""
_TOO_LONG_TEXT = re.compile(r"(maximum|available) context (length|size)", re.IGNORECASE)
"""In the message of vLLM, whose code is that of HTTP."""
_TRANSIENT = {408, 409, 425, 429}
_SHOWN = 200


class Unavailable(ServiceError):
    """The service did not answer this time; a later attempt may succeed.

    Attributes:
        seconds: how long the service asked to wait.
        sent: whether the request may have reached the service.
    """

    def __init__(self, message: str, seconds: float = 0.0, *, sent: bool = True) -> None:
        """Keep the delay, and whether the request was sent."""
        super().__init__(message)
        self.seconds = seconds
        self.sent = sent


class ChatClient:
    """Asks a service, at most once for each distinct request that is not stored.

    Args:
        service: address, limits and prices.
        key: the API key; empty sends none.
        replies: where replies are kept.
        spending: the account of requests and cost.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        service: JudgeService,
        key: str,
        replies: ReplyCache,
        spending: Spending,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Connect to nothing yet."""
        self._service = service
        self._key = key
        self._replies = replies
        self._spending = spending
        self._sleep = sleep
        # Newer models of OpenAI accept only the second name, many local servers only the first.
        self._limit_name = "max_tokens"
        self.requests = 0
        self.cost = 0.0
        """Requests made, retries included, and what they cost."""

    def complete(self, requests: Sequence[Mapping[str, Any]], stop: Callable[[], bool]) -> tuple[list[Reply], int]:
        """Return the reply to each request, in order, and how many of the distinct requests were stored.

        Replies are kept as they arrive, so that nothing is asked twice if a later request fails.

        Args:
            requests: ``model``, ``messages``, ``max_tokens`` and further fields of a chat completion.
            stop: polled before each request.

        Raises:
            ServiceError: the service is unreachable, rejects a request, or a limit is reached.
            StoreError: a reply cannot be kept.
            Stopped: ``stop`` returned True.
        """
        ids = [request_id(request) for request in requests]
        distinct = dict(zip(ids, requests, strict=True))
        found = {each: reply for each in distinct if (reply := self._replies.get(each)) is not None}
        stored = len(found)
        missing = {each: request for each, request in distinct.items() if each not in found}
        if missing:
            found |= asyncio.run(self._ask_all(missing, stop))
        return [found[each] for each in ids], stored

    async def _ask_all(self, missing: Mapping[str, Mapping[str, Any]], stop: Callable[[], bool]) -> Mapping[str, Reply]:
        import httpx2

        found: dict[str, Reply] = {}
        slots = asyncio.Semaphore(self._service.parallel)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # The deadline of `_post` covers the whole response; the library's own cover each read only.
        limits = httpx2.Limits(max_connections=self._service.parallel)

        async def ask(each: str, request: Mapping[str, Any]) -> None:
            async with slots:
                found[each] = await self._ask(http, request, stop)
                if not found[each].rejected:
                    self._replies.put(each, found[each])

        async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits) as http:
            try:
                async with asyncio.TaskGroup() as group:
                    for each, request in missing.items():
                        group.create_task(ask(each, request))
            except ExceptionGroup as failed:
                # The others were cancelled because of the first.
                raise failed.exceptions[0] from None
        return found

    async def _ask(self, http: AsyncClient, request: Mapping[str, Any], stop: Callable[[], bool]) -> Reply:
        attempts = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(ATTEMPTS),
            wait=_pause,
            retry=retry_if_exception_type(Unavailable),
            before_sleep=_log_pause,
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if stop():
                        raise Stopped("stopped between requests to the judge's service; replies so far are kept")
                    return await self._ask_once(http, request)
        except Unavailable as error:
            raise ServiceError(f"{error} Tried {ATTEMPTS} times; replies so far are kept: run again later.") from None
        raise AssertionError("attempts end with a reply or an error")

    async def _ask_once(self, http: AsyncClient, request: Mapping[str, Any]) -> Reply:
        service, most = self._service, int(request["max_tokens"])
        messages = request["messages"]
        # No token is shorter than a byte.
        longest = sum(len(message["content"].encode()) + MESSAGE_TOKENS for message in messages)
        bound = service.price(longest, most)
        self._spending.reserve(bound)
        self.requests += 1
        # Unless the service says otherwise, a request is paid for: also one whose reply never arrived.
        actual = bound
        try:
            limit_name = self._limit_name
            body = {limit_name if name == "max_tokens" else name: value for name, value in request.items()}
            status, headers, content = await self._post(http, body)
            if status == 200:
                reply = self._reply(content)
                if reply.input_tokens is not None and reply.output_tokens is not None:
                    actual = service.price(reply.input_tokens, reply.output_tokens)
                return reply
            actual = 0.0
            return self._rejected(status, headers, content, limit_name)
        except Unavailable as error:
            if not error.sent:
                actual = 0.0
            raise
        finally:
            self.cost += actual
            self._spending.settle(bound, actual)

    async def _post(self, http: AsyncClient, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], str]:
        """Post a request. Redirects are not followed: they would send the key to another address."""
        import httpx2

        service = self._service
        content = bytearray()
        try:
            async with (
                asyncio.timeout(service.timeout),
                http.stream("POST", f"{service.address}/chat/completions", json=body) as response,
            ):
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise ServiceError(f"{self._named} answers with more than {MOST_BYTES:,} bytes.")
        except TimeoutError:
            raise Unavailable(
                f"{self._named} does not answer: no complete response within {service.timeout:g} s "
                "(`cluster.judge_service.timeout`)."
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            text = self._clean(str(error)) or type(error).__name__
            sent = not isinstance(error, httpx2.ConnectError | httpx2.InvalidURL)
            raise Unavailable(f"{self._named} does not answer: {text.rstrip('.')}.", sent=sent) from None
        return response.status_code, _headers(response), self._without_key(content.decode(errors="replace"))

    def _reply(self, content: str) -> Reply:
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            message, usage = choice["message"], answer.get("usage") or {}
            return Reply(
                text=self._without_key(str(message.get("content") or "")),
                refusal=self._without_key(str(message.get("refusal") or "")),
                finish=self._without_key(str(choice.get("finish_reason") or "")),
                model=self._without_key(str(answer.get("model") or "")),
                input_tokens=_count(usage.get("prompt_tokens")),
                output_tokens=_count(usage.get("completion_tokens")),
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unavailable(
                f"{self._named} does not answer like an OpenAI-compatible service: {self._clean(content)!r}."
            ) from None

    def _rejected(self, status: int, headers: Mapping[str, str], content: str, limit_name: str) -> Reply:
        """Return what a rejected request says about the conversation itself.

        Raises:
            Unavailable: another attempt may succeed.
            ServiceError: it will not.
        """
        error = _error(content)
        code, text = str(error.get("code") or ""), self._clean(str(error.get("message") or content))
        stated = f"{self._named} answers {status}" + (f": {text.rstrip('.')}." if text else ".")
        if code in _FILTERED:
            return Reply(text="", finish=CONTENT_FILTER)
        known = {code, str(error.get("type") or "")} & _TOO_LONG
        if known or status == 413 or (status == 400 and _TOO_LONG_TEXT.search(text)):
            return Reply(text="", finish=TOO_LONG)
        if status == 400 and error.get("param") == limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
            raise Unavailable(stated)
        if status in _TRANSIENT or status >= 500:
            if code == "insufficient_quota":
                raise ServiceError(f"{stated} Replies so far are kept.")
            seconds = retry_after(headers.get("retry-after", ""))
            if seconds > PATIENCE_SECONDS:
                raise ServiceError(f"{stated} It asks to wait for {seconds:g} s. Replies so far are kept.")
            raise Unavailable(stated, seconds)
        if 300 <= status < 400:
            raise ServiceError(
                f"{self._named} redirects to another address, to which the key is not sent. Set "
                "`cluster.judge_service.url` to the address of the service itself."
            )
        advice = {
            401: f"Set {API_KEY} to a key of this service." if self._key else f"{API_KEY} is not set.",
            403: f"The key in {API_KEY} may not use this model.",
            404: "Check `judge.model`, and that `cluster.judge_service.url` ends before `/chat/completions`.",
        }.get(status, "Check `judge.model`, `judge.temperature` (null sends none) and `judge.max_tokens`.")
        raise ServiceError(f"{stated} {advice}")

    @property
    def _named(self) -> str:
        return f"The judge's service at {self._service.address}"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _clean(self, text: str) -> str:
        """Return a text of the service for a message: one short line, without the key."""
        return " ".join(self._without_key(text).split())[:_SHOWN]


def retry_after(text: str) -> float:
    """Return the delay of a ``Retry-After`` header in seconds, given as a number or a date; 0 if it is neither."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    # TypeError: a date without a time zone.
    except (ValueError, TypeError):
        return 0.0


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.seconds if isinstance(error, Unavailable) else 0.0
    return max(asked, wait_exponential_jitter(initial=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS)(state))


def _log_pause(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info("attempt %d: %s Next attempt in %.0f s", state.attempt_number, error, state.upcoming_sleep)


def _headers(response: Response) -> Mapping[str, str]:
    return {name.lower(): text for name, text in response.headers.items()}


def _error(content: str) -> Mapping[str, Any]:
    """Return the error object of a response: OpenAI nests it, some local servers do not."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    found = answer.get("error", answer) if isinstance(answer, dict) else {}
    return found if isinstance(found, dict) else {"message": found}


def _count(found: Any) -> int | None:
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
