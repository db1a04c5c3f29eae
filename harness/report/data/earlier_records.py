"""Records of sweeps of an earlier version, which do not say what their stages do: the kinds of that version.

A kind that is added needs no line here: what is recorded of it says everything.
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
"""The kind of stage that played each part of a cell; every other part was a grade."""
DECODED = {"generate": {"path": "plain"}}
"""How each kind of that version decoded, of which its manifests do not speak."""
TRAINED = ("align", "finetune", "repair")
"""The kinds that trained, in the order of the chain."""
_PARALLEL = ("align", "finetune")
_ATTACKED = ("finetune", "repair")
_SETTINGS = {
    "align": {"align.budget": "budget", "align.rows": "refusal.rows", "align.adapter": "adapter"},
    "poison": {"finetune.rows": "rows", "finetune.compat": "compat"},
    "finetune": {"finetune.budget": "budget", "finetune.adapter": "protocol", "finetune.fresh": "adapter"},
    "repair": {},
}


def traits_of(kind: str) -> dict[str, Any]:
    """Return what a record says of a stage today, for one of a kind of that version."""
    return {
        "trains": kind in TRAINED,
        "parallel": kind in _PARALLEL,
        "attacked": kind in _ATTACKED,
        "settings": _SETTINGS.get(kind),
    }


def settings_in(settings: Mapping[str, str], spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the recorded settings without those that a stage of that version had and did not read."""
    unread = () if spec.get("protocol") == "double" else ("finetune.fresh",)
    return {name: path for name, path in settings.items() if name not in unread}
