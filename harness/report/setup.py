"""The setup of a cell: how it was trained, under the names that a configuration gives to these settings."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.report.ledger import Entry

_BATCHING = "micro_batch_size"
"""How a batch is cut up is no difference: the effective batch is ``batch_size``."""


def setup_of(keys: Mapping[str, str | None], ledger: Mapping[str, Entry]) -> dict[str, Any]:
    """Return budgets, adapter protocol, effective batch, data compat and world size of a cell.

    What tells defenses from each other (the methods and their data) is not among it.

    Args:
        keys: of the cell's stages, by the part they play.
        ledger: of the sweep; a stage whose spec is not stored adds nothing.
    """
    stages = {
        part: ledger[key] for part in ("align", "poison", "finetune") if (key := keys.get(part)) in ledger and key
    }
    return {name: value for part, entry in stages.items() for name, value in _settings(part, entry)}


def _settings(part: str, entry: Entry) -> Iterator[tuple[str, Any]]:
    spec = entry.spec
    if part == "poison":
        yield from ((f"finetune.{name}", spec[name]) for name in ("rows", "compat") if name in spec)
        return
    for name, value in spec.get("budget", {}).items():
        if not name.startswith("_") and name != _BATCHING:
            yield f"{part}.budget.{name}", value
    if part == "align":
        yield from (("align.rows", source["rows"]) for source in [spec.get("refusal") or {}] if "rows" in source)
        adapter = spec.get("adapter") or {}
        yield from ((f"align.adapter.{name}", value) for name, value in adapter.items() if not name.startswith("_"))
    elif "protocol" in spec:
        yield "finetune.adapter", spec["protocol"]
    yield f"{part}.processes", entry.processes
