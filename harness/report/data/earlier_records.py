"""Stores of an earlier version: properties of stages and counts of truncated prompts that they lack.

New kinds are not added here: their properties are in the record.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.corpora.examples import Example
from harness.corpora.template import Template, prompt_of
from harness.errors import UnreadableFile
from harness.stages.generate import read_answers

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
_SPECIAL = 2
"""Tokens that a tokenizer puts before a text: beginning of sequence, and a space."""
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


def perhaps_cut(artifact: Path, spec: Mapping[str, Any]) -> int:
    """Return an upper bound of the truncated prompts of a ``generate`` artifact whose manifest does not count them.

    The earlier version also truncated the special tokens before a text (beginning of sequence). A tokenizer makes at
    most one token per byte, so the bound is safe, and 0 is exact.

    Args:
        artifact: folder of the artifact; 0 is returned if it cannot be read.
        spec: the settings of the stage.
    """
    try:
        encoding, longest = spec["encoding"], int(spec["decoding"]["max_prompt"])
        template, newline = Template(encoding["template"]), bool(encoding["newline"])
        examples = [Example(row["instruction"], "", row["input"]) for row in read_answers(artifact)]
        texts = [prompt_of(example, template=template, newline=newline) for example in examples]
    except (UnreadableFile, OSError, ValueError, KeyError, TypeError):
        return 0
    return sum(len(text.encode()) + _SPECIAL > longest for text in texts)
