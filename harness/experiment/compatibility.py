"""Compatibility of a method with the adapter and the data of its slot, checked before anything runs."""

from collections.abc import Sequence

from harness.corpora.slices import OneAnswer, Slice
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.protocols import ComparesPasses, DataRequirement, Named


def incompatibilities(
    slot: str, method: Named, adapter: Lora, data: Sequence[tuple[DataRequirement, Slice]]
) -> list[Problem]:
    """Return why a method cannot be used in its slot, as far as this can be checked without loading a model.

    Args:
        slot: slot of the defense.
        method: the method in that slot.
        adapter: the adapter that is trained in the slot.
        data: the method's data requirements, each with the examples that are available for it.
    """
    found = []
    if isinstance(method, ComparesPasses) and adapter.dropout > 0:
        alternative = "" if slot == "align" else ", or `finetune.fresh.dropout=0` if `finetune.fresh` is set"
        found.append(
            f"`{method.name}` compares several forward passes on the same batch, but its adapter has dropout "
            f"{adapter.dropout}; expected 0. Set `align.adapter.dropout=0`{alternative}"
        )
    for need, rows in data:
        if need.paired and isinstance(rows.origin, OneAnswer):
            found.append(
                f"`{method.name}` needs harmful examples with a refusal for the same prompt, but no example of "
                f"`{rows.origin.name}` has both; expected a corpus with refusals, such as `corpus=beavertails`"
            )
        least = need.disjoint_batches * (need.batch_size or 1)
        if need.disjoint_batches > 1 and rows.rows < least:
            found.append(
                f"`{method.name}` samples {need.disjoint_batches} disjoint batches of {need.batch_size} examples, but "
                f"has only {rows.rows} of `corpus.{need.role}`; expected at least {least}. Use fewer or smaller batches"
            )
    return [Problem(f"defense.{slot}", reason) for reason in found]
