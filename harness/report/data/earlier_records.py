"""Sweep records of an earlier version, which lack the properties of stages: derived here from their kinds.

New kinds are not added here: their properties are in the record.
"""

from collections.abc import Mapping
from typing import Any

KINDS = {
    "base": "base",
    "align": "align",
    "poison": "poison",
    "finetune": "finetune",
    "repair": "repair",
    "harm_answers": "generate",
    "task_answers": "generate",
    "aligned_harm_answers": "generate",
    "aligned_task_answers": "generate",
}
"""Stage kind of each role in a cell; every other role was a grade."""
DECODED = {"generate": {"path": "plain"}}
"""How each kind of that version decoded, which its manifests do not record."""
TRAINED = ("align", "finetune", "repair")
"""The training kinds, in the order of the chain."""
_PARALLEL = ("align", "finetune")
_ATTACKED = ("finetune", "repair")
_SETTINGS = {
    "align": {"align.budget": "budget", "align.rows": "refusal.rows", "align.adapter": "adapter"},
    "poison": {"finetune.rows": "rows", "finetune.compat": "compat"},
    "finetune": {"finetune.budget": "budget", "finetune.adapter": "protocol", "finetune.fresh": "adapter"},
    "repair": {},
}


def traits_of(kind: str) -> dict[str, Any]:
    """Return the properties that current records have, for a kind of that version."""
    return {
        "trains": kind in TRAINED,
        "parallel": kind in _PARALLEL,
        "attacked": kind in _ATTACKED,
        "settings": _SETTINGS.get(kind),
    }


def settings_in(settings: Mapping[str, str], spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the recorded settings without those that a stage of that version ignored."""
    unread = () if spec.get("protocol") == "double" else ("finetune.fresh",)
    return {name: path for name, path in settings.items() if name not in unread}
