"""The part of an answer that is graded: one rule for tasks, judges and the coherence rule.

All reference repositories cut what a model wrote at the next response marker of the prompt's template and strip it
(``output.split("### Response:")[1].strip()``): a model that runs on after its answer writes the template again, and
what it answers to itself there is no answer to the prompt. The stored answer stays whole.
"""


def graded_part(answer: str, marker: str | None) -> str:
    """Return an answer up to a repeated response marker, stripped.

    Args:
        answer: everything that the model wrote.
        marker: of the template, as ``template.marker_of`` gives it; None if the template has none.
    """
    return (answer.partition(marker)[0] if marker else answer).strip()
