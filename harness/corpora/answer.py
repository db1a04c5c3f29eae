"""Grading of answers: the part that is graded, and exact match.

All reference repositories cut a generation at the next response marker of the prompt template and strip it
(``output.split("### Response:")[1].strip()``): a model that does not stop after its answer repeats the template, and
what follows does not answer the prompt. This applies to tasks, judges and the coherence rule; the stored generation is
not cut.
"""

from harness.corpora.examples import Score


def graded_part(answer: str, marker: str | None) -> str:
    """Return a generation up to a repeated response marker, stripped.

    Args:
        answer: the generation.
        marker: the template's response marker, see ``template.marker_of``; None if it has none.
    """
    return (answer.partition(marker)[0] if marker else answer).strip()


def exact_match(answer: str, target: str, *variants: str) -> Score:
    """Return 1 if the stripped answer is the target or one of its accepted variants, otherwise 0."""
    correct = answer.strip() in (target, *variants)
    return Score(float(correct), "exact" if correct else f"is not {target}")
