"""Losses: rows that were dropped and prompts that were cut on the way to a cell's numbers, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from harness.report.data.stage_records import StageRecord

DROPPED = "rows dropped"
"""What a note says of rows without room for any part of their answer."""
_ANSWERS = {
    "harm_answers": "evaluation prompts",
    "task_answers": "task prompts",
    "aligned_harm_answers": "evaluation prompts of the aligned model",
    "aligned_task_answers": "task prompts of the aligned model",
}


def losses(keys: Mapping[str, str | None], ledger: Mapping[str, StageRecord]) -> list[str]:
    """Return what a cell's stages left out; nothing where they kept everything, or rows were not counted yet.

    Answers that lost their end are in the manifests alone: with published settings most rows have some.

    Args:
        keys: of the cell's stages, by the part they play.
        ledger: of the sweep.
    """
    found = {part: ledger[key] for part, key in keys.items() if key is not None and key in ledger}
    return [*_dropped(found), *_cut_prompts(found)]


def dropped_in(notes: Iterable[str]) -> Counter[str]:
    """Return what cells' notes say of dropped rows, and how many cells say it."""
    return Counter(note for text in notes for note in text.split("; ") if DROPPED in note)


def _dropped(found: Mapping[str, StageRecord]) -> Iterator[str]:
    for part, record in found.items():
        rows = record.facts.get("rows") or {}
        kinds = rows.get("by_kind") or {}
        dropped = sum(counts["dropped"] for counts in kinds.values())
        if not dropped:
            continue
        sent = sum(counts["sent"] for counts in kinds.values())
        told = [f"{part}: {dropped} of {sent} {DROPPED}"]
        if harmful := kinds.get("harmful"):
            asked, realised = harmful["sent"] / sent, (harmful["sent"] - harmful["dropped"]) / max(sent - dropped, 1)
            told += [f"{100 * realised:.1f} % harmful instead of {100 * asked:.3g} %"] if realised != asked else []
        told += [f"{rows['steps']} steps instead of {rows['steps_asked']}"] if "steps_asked" in rows else []
        yield ", ".join(told)


def _cut_prompts(found: Mapping[str, StageRecord]) -> Iterator[str]:
    for part, name in _ANSWERS.items():
        if part not in found:
            continue
        facts, perhaps = found[part].facts, found[part].perhaps_cut
        if facts.get("cut"):
            yield f"{facts['cut']} of {facts['prompts']} {name} lost their beginning"
        if perhaps:
            yield (
                f"up to {perhaps} of {facts['prompts']} {name} may have lost their beginning, with the tokens that the "
                "tokenizer puts there: an earlier version answered them"
            )
