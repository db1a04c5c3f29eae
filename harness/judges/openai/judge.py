"""A large model as judge, behind any OpenAI-compatible endpoint: OpenAI, another provider, or a local server.

The judge is identified by its model, its rubric and its decoding. The endpoint is a resource
(``cluster.judge_service``): the same weights behind another address are the same judge, and the model that the service
says it used is a fact of the manifest. Services change models behind a name, so name a dated snapshot
(``gpt-4o-mini-2024-07-18``) where there is one.

A reply that does not have the form that the rubric asks for, a refusal to judge, a reply that was cut off before its
verdict and a conversation that exceeds the model's context are abstentions: counted by kind, with the text in the
record, and never replaced by a score. A service that does not answer is no abstention: the stage fails, and its replies
so far are kept in the store.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, final

from harness.corpora.examples import Example, Score
from harness.corpora.wording import plain
from harness.engine.checks import counts
from harness.errors import ConfigError, Problem
from harness.execution.judge_service import API_KEY, from_environment
from harness.judges.openai.replies import CONTENT_FILTER, LENGTH, TOO_LONG, Reply, ReplyCache
from harness.judges.openai.rubric import Rubric
from harness.judges.openai.spending import Spending

SPENT = "spent.jsonl"
"""The account of requests and cost, in the folder of the replies."""
REFUSED, CUT, UNREADABLE = "refused to judge", "cut off", "no verdict"
_REFUSAL = re.compile(
    r"(?:i'm sorry|i am sorry|i apologi[sz]e|sorry|i cannot|i can't|i can not|i'm unable|i am unable)\b"
)
_SHOWN = 60


@final
@dataclass(frozen=True, kw_only=True)
class OpenAI:
    """Scores an answer by asking a model.

    Attributes:
        model: name of the model, as the service knows it.
        rubric: what is asked, and how the reply is read.
        temperature: sampling temperature; null sends none, for models that accept only their own.
        max_tokens: maximum length of a reply, in tokens.
    """

    name: ClassVar[str] = "openai"
    version: ClassVar[int] = 1

    model: str
    rubric: Rubric
    temperature: float | None = 0.0
    max_tokens: int = 1024

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "max_tokens")
        if not self.model.strip():
            found.append(Problem("model", "is empty; expected the name of a model of the service"))
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            found.append(
                Problem("temperature", f"{self.temperature} is outside 0..2; expected 0 for a reproducible judge")
            )
        return found

    def preflight(self) -> list[Problem]:
        """Return an error if the HTTP client is missing; the service is not contacted."""
        if find_spec("httpx2") is None:
            return [
                Problem("", "judge=openai needs the package httpx2; install it with `pip install 'harness[openai]'`")
            ]
        return []

    def grade(self, examples: Sequence[Example], answers: Sequence[str], *, device: str) -> list[Score]:  # noqa: ARG002
        """Score each answer, without a store: replies are kept for this call only.

        Raises:
            ServiceError: the service is unreachable, rejects a request, or a limit is reached.
        """
        with TemporaryDirectory() as folder:
            return self.grade_remotely(examples, answers, replies=Path(folder), facts={}, stop=lambda: False)

    def grade_remotely(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        *,
        replies: Path,
        facts: dict[str, Any],
        stop: Callable[[], bool],
    ) -> list[Score]:
        """Score each answer given its instruction, from 0 (harmless) to 1.

        Raises:
            ConfigError: the service is not set up.
            ServiceError: the service is unreachable, rejects a request, or a limit is reached.
            StoreError: a reply cannot be kept.
            Stopped: ``stop`` returned True.
        """
        from harness.judges.openai.client import ChatClient

        service = from_environment()
        if problem := service.problem():
            raise ConfigError([problem])
        key = os.environ.get(API_KEY, "").strip()
        client = ChatClient(service, key, ReplyCache(replies), Spending(replies / SPENT, service))
        requests = [self.request(each.instruction, answer) for each, answer in zip(examples, answers, strict=True)]
        received, stored = client.complete(requests, stop)
        scores = [self.score(reply) for reply in received]
        facts["service"] = {
            "address": service.address,
            "models": sorted({reply.model for reply in received if reply.model}),
            "requests": client.requests,
            "stored": stored,
            "cost": client.cost,
            "input_tokens": sum(reply.input_tokens or 0 for reply in received),
            "output_tokens": sum(reply.output_tokens or 0 for reply in received),
        }
        facts["abstentions"] = dict(
            Counter(kind_of(reply) for reply, score in zip(received, scores, strict=True) if score.value is None)
        )
        return scores

    def request(self, question: str, answer: str) -> dict[str, Any]:
        """Return the request that asks for a grade: model, messages and decoding, the identity of its reply."""
        found: dict[str, Any] = {
            "model": self.model,
            "messages": list(self.rubric.messages(question, answer)),
            "max_tokens": self.max_tokens,
        }
        return found if self.temperature is None else found | {"temperature": self.temperature}

    def score(self, reply: Reply) -> Score:
        """Return the score that a reply states; an abstention with the reason if it states none."""
        readable = not reply.refusal and reply.finish not in (CONTENT_FILTER, TOO_LONG)
        if readable and (found := self.rubric.verdict(reply.text)) is not None:
            return found
        text = reply.refusal or reply.text
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return Score(None, f"{kind_of(reply)}: {shown!r}" if text else kind_of(reply))


def kind_of(reply: Reply) -> str:
    """Return which kind of abstention a reply without a verdict is."""
    if reply.finish == TOO_LONG:
        return "the conversation is longer than the judge's context"
    if reply.refusal or reply.finish == CONTENT_FILTER or _REFUSAL.match(plain(reply.text)):
        return REFUSED
    return CUT if reply.finish == LENGTH else UNREADABLE
