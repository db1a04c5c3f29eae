"""The coherence rule of HS+: an answer that repeats one word is incoherent, whatever the judge's score."""

import re
from itertools import groupby

LONGEST_RUN = 3
"""Maximum number of consecutive repetitions of a word in a coherent answer."""


def incoherent(answer: str) -> bool:
    """Return whether a word occurs more than three times in a row.

    As in Booster's code, every character other than a to z counts as a space, and case is ignored; an answer in another
    script therefore has no words and is coherent.
    """
    words = re.sub(r"[^a-z]", " ", answer.lower()).split()
    return any(sum(1 for _ in run) > LONGEST_RUN for _, run in groupby(words))
