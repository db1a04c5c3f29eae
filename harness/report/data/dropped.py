"""Notes on training examples that were dropped and prompts that were truncated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.report.data.stage_records import StageRecord

DROPPED = "rows dropped"
"""Text of a note on examples whose prompt leaves no room for any part of the answer."""
_ANSWERS = {
    "harm_answers": "evaluation prompts",
    "task_answers": "task prompts",
    "aligned_harm_answers": "evaluation prompts of the aligned model",
    "aligned_task_answers": "task prompts of the aligned model",
}


def dropped_notes(keys: Mapping[str, str | None], stage_records: Mapping[str, StageRecord]) -> list[str]:
    """Return notes on the data that a cell's stages left out; none if nothing was, or if the stage did not count it.

    Truncated answers are counted in the manifests only, because published settings truncate some in most cells.

    Args:
        keys: the keys of the cell's stages, by role.
        stage_records: the stages of the sweep, by key.
    """
    found = {part: stage_records[key].facts for part, key in keys.items() if key is not None and key in stage_records}
    return [*_dropped(found), *_cut_prompts(found)]


def count_dropped_notes(notes: Iterable[str]) -> Counter[str]:
    """Return the distinct notes on dropped examples, and in how many cells each occurs."""
    return Counter(note for text in notes for note in text.split("; ") if DROPPED in note)


def _dropped(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for part, facts in found.items():
        rows = facts.get("rows") or {}
        kinds = rows.get("by_kind") or {}
        dropped = sum(counts["dropped"] for counts in kinds.values())
        if not dropped:
            continue
        sent = sum(counts["sent"] for counts in kinds.values())
        parts = [f"{part}: {dropped} of {sent} {DROPPED}"]
        if harmful := kinds.get("harmful"):
            nominal, actual = harmful["sent"] / sent, (harmful["sent"] - harmful["dropped"]) / max(sent - dropped, 1)
            parts += [f"{100 * actual:.1f} % harmful instead of {100 * nominal:.3g} %"] if actual != nominal else []
        parts += [f"{rows['steps']} steps instead of {rows['steps_asked']}"] if "steps_asked" in rows else []
        yield ", ".join(parts)


def _cut_prompts(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for part, name in _ANSWERS.items():
        facts = found.get(part, {})
        if facts.get("cut"):
            yield f"{facts['cut']} of {facts['prompts']} {name} were truncated at the beginning"
