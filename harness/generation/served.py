"""Generation with a method at inference around it: prompts are rewritten, rejected, or answered by a steered model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.generation import transformers
from harness.generation.answers import Answers
from harness.generation.decoding import Decoding
from harness.protocols import (
    RejectsPrompts,
    RewritesPrompts,
    SteersActivations,
)

if TYPE_CHECKING:
    from harness.corpora.examples import Example
    from harness.protocols import Calibrated, ServedModel, ServeMethod, Verdict

REJECTION = "sorry I cannot help with that"
"""The answer to a rejected prompt. Every judge of refusals takes it for one: it has a refusal phrase, and begins as the
refusals of the synthetic world do."""


class ServedAnswers(NamedTuple):
    """Answers through a method.

    Attributes:
        answers: as without one; those to rejected prompts are ``REJECTION``.
        verdicts: one per prompt; None if the method rejects none.
        facts: those of the method.
    """

    answers: Answers
    verdicts: list[Verdict] | None
    facts: dict[str, Any]


def answer(
    method: ServeMethod,
    served: ServedModel,
    calibrated: Calibrated,
    examples: Sequence[Example],
    *,
    new_tokens: int,
    decoding: Decoding,
) -> ServedAnswers:
    """Return the answer to every prompt that the method does not reject, and ``REJECTION`` for the others, in order.

    A prompt is judged as the user wrote it, and then rewritten.

    Args:
        method: the method.
        served: the model.
        calibrated: what the method's calibration found; empty if it has none.
        examples: the prompts.
        new_tokens: maximum length of a generation, in tokens.
        decoding: decoding settings.

    Raises:
        ModelError: the model does not have what the method needs, or a single prompt does not fit into memory.
    """
    facts: dict[str, Any] = {}
    verdicts = (
        method.verdicts(served, calibrated, examples, facts=facts) if isinstance(method, RejectsPrompts) else None
    )
    kept = [place for place in range(len(examples)) if verdicts is None or not verdicts[place].rejected]
    asked = [examples[place] for place in kept]
    if isinstance(method, RewritesPrompts):
        asked = [method.rewritten(example) for example in asked]
    steering = method.steering(served, calibrated) if isinstance(method, SteersActivations) else nullcontext()
    with steering:
        given = transformers.answer(
            served.model,
            served.tokenizer,
            [served.encoding.question(example) for example in asked],
            new_tokens=new_tokens,
            decoding=decoding,
            thoughts=served.encoding.thoughts,
            numbers=kept,
        )
    texts = [REJECTION] * len(examples)
    samples = [[REJECTION] * decoding.samples for _ in examples]
    for place, text, several in zip(kept, given.texts, given.samples or [[]] * len(kept), strict=True):
        texts[place], samples[place] = text, several
    given = given._replace(texts=texts, samples=samples if decoding.samples > 1 else None)
    return ServedAnswers(given, verdicts, facts)
