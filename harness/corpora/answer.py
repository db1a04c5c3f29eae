"""Grading of answers: the part that is graded, behind a thought, and the two ways of matching a class name.

All reference repositories cut a generation at the next response marker of the prompt template and strip it
(``output.split("### Response:")[1].strip()``): a model that does not stop after its answer repeats the template, and
what follows does not answer the prompt. This applies to tasks, judges and the coherence rule; the stored generation is
not cut.

A reasoning model thinks before it answers. Only what follows its answer marker is graded; a generation without the
marker is graded as a whole, as in Safety-Tax (arXiv 2503.00555), and counted.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.corpora.examples import Score
from harness.corpora.thoughts import Thoughts

Match = Literal["contains"]
"""How an answer is compared with a class name: ``contains`` searches for it anywhere; None requires nothing else."""


class Split(NamedTuple):
    """A generation as thought and answer.

    Attributes:
        thought: what precedes the answer marker; empty without one.
        answer: what follows the first answer marker; without one, the whole generation.
        marked: whether there is an answer marker.
    """

    thought: str
    answer: str
    marked: bool


def split(generation: str, thoughts: Thoughts | None) -> Split:
    """Return thought and answer of a generation, without markers and surrounding whitespace.

    Args:
        generation: what the model wrote.
        thoughts: the markers; None if the model has no thoughts, so that the generation is the answer.
    """
    if thoughts is None:
        return Split("", generation.strip(), marked=False)
    thought, found, answer = generation.partition(thoughts.answer)
    if not found:
        return Split("", generation.strip(), marked=False)
    return Split(thought.strip().removeprefix(thoughts.think).strip(), answer.strip(), marked=True)


def graded_part(generation: str, marker: str | None, thoughts: Thoughts | None = None) -> str:
    """Return the answer of a generation up to a repeated response marker, stripped.

    Args:
        generation: what the model wrote.
        marker: the template's response marker, see ``template.marker_of``; None if it has none.
        thoughts: the markers of thought and answer; None if the model has no thoughts.
    """
    answer = split(generation, thoughts).answer
    return (answer.partition(marker)[0] if marker else answer).strip()


def matched(answer: str, names: Sequence[str], match: Match | None) -> Score:
    """Return 1 if the answer is (None) or contains one of the names of its target class, otherwise 0.

    ``contains`` is case-sensitive and ignores word boundaries, as in the scripts of Vaccine and T-Vaccine.
    """
    if match is None:
        return exact_match(answer, *names)
    correct = any(name in answer for name in names)
    return Score(float(correct), "contained" if correct else f"does not contain {names[0]}")


def exact_match(answer: str, target: str, *variants: str) -> Score:
    """Return 1 if the stripped answer is the target or one of its accepted variants, otherwise 0."""
    correct = answer.strip() in (target, *variants)
    return Score(float(correct), "exact" if correct else f"is not {target}")


def named_class(answer: str, names: Mapping[str, Sequence[str]], match: Match | None) -> str | None:
    """Return the class that an answer is (None) or contains; None if it is none of them, or contains several.

    Args:
        answer: the graded part of an answer.
        names: the names of each class.
        match: as for ``matched``.
    """
    found = [label for label, accepted in names.items() if matched(answer, accepted, match).value]
    return found[0] if len(found) == 1 else None
