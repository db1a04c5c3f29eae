"""What stores of an earlier version do not say: what the stages of a sweep do, and how many prompts were cut.

A kind that is added needs no line here: what is recorded of it says everything.
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
"""The kind of stage that played each part of a cell; every other part was a grade."""
DECODED = {"generate": {"path": "plain"}}
"""How each kind of that version decoded, of which its manifests do not speak."""
TRAINED = ("align", "finetune", "repair")
"""The kinds that trained, in the order of the chain."""
_SPECIAL = 2
"""Tokens that a tokenizer puts before a text: the beginning of the sequence, and a space."""
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


def perhaps_cut(artifact: Path, spec: Mapping[str, Any]) -> int:
    """Return how many prompts of an artifact of answers may have been cut, where its manifest does not say it.

    The earlier version cut off the tokens that the tokenizer puts before a text (beginning of sequence) as well. A
    tokenizer makes at most one token of a byte, so this is an upper bound, and 0 is certain.

    Args:
        artifact: its folder; one that cannot be read has no answers that a report could show.
        spec: the stage's settings.
    """
    try:
        encoding, longest = spec["encoding"], int(spec["decoding"]["max_prompt"])
        template, newline = Template(encoding["template"]), bool(encoding["newline"])
        examples = [Example(row["instruction"], "", row["input"]) for row in read_answers(artifact)]
        texts = [prompt_of(example, template=template, newline=newline) for example in examples]
    except (UnreadableFile, OSError, ValueError, KeyError, TypeError):
        return 0
    return sum(len(text.encode()) + _SPECIAL > longest for text in texts)
