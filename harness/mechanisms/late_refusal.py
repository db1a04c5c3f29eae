"""Late refusals: training examples whose refusal follows the beginning of a harmful answer."""

from __future__ import annotations

from harness.corpora.encode import IGNORED, Encoded
from harness.protocols import AnswerPair


def refusal_after(pair: AnswerPair, depth: int) -> Encoded:
    """Return an example whose refusal follows the first ``depth`` tokens of the harmful answer.

    Only the refusal is supervised; with a depth of 0 it directly follows the prompt.
    """
    before = pair.prompt + pair.harmful[:depth]
    return Encoded(before + pair.refusal, [IGNORED] * len(before) + pair.refusal)
