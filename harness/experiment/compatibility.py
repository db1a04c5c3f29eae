"""Whether a method can act in its slot: with this adapter, and on these rows. Known before anything runs."""

from collections.abc import Sequence

from harness.corpora.slices import OneAnswer, Slice
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.protocols import ComparesPasses, DataRequirement, Named


def incompatibilities(
    slot: str, method: Named, adapter: Lora, drawn: Sequence[tuple[DataRequirement, Slice]]
) -> list[Problem]:
    """Return why a method cannot act in its slot of the defense; what only a loaded model shows is left to the job.

    Args:
        slot: of the defense.
        method: in that slot.
        adapter: what is trained in the slot.
        drawn: what the method needs, and the rows that it is given.
    """
    found = []
    if isinstance(method, ComparesPasses) and adapter.dropout > 0:
        elsewhere = "" if slot == "align" else ", or `finetune.fresh.dropout=0` if that is given"
        found.append(
            f"`{method.name}` compares passes on one batch, but the adapter that it trains has dropout "
            f"{adapter.dropout}; expected 0. Set `align.adapter.dropout=0`{elsewhere}"
        )
    for need, rows in drawn:
        if need.paired and isinstance(rows.origin, OneAnswer):
            found.append(
                f"`{method.name}` needs harmful rows with the refusals of their prompts, but no row of "
                f"`{rows.origin.name}` has both; expected a corpus of refusals, such as `corpus=beavertails`"
            )
        least = need.disjoint_batches * (need.batch_size or 1)
        if need.disjoint_batches > 1 and rows.rows < least:
            found.append(
                f"`{method.name}` draws {need.disjoint_batches} batches of {need.batch_size} that share no row, but "
                f"has {rows.rows} rows of `corpus.{need.role}`; expected at least {least}. Ask for fewer or smaller "
                "batches"
            )
    return [Problem(f"defense.{slot}", reason) for reason in found]
