"""Durability: what each setting of the attack does to a defense, over the attacker's seeds.

Qi, Wei et al., 2025, "On Evaluating the Durability of Safeguards for Open-Weight LLMs" (arXiv:2412.07097): a defense
that holds for one seed, learning rate or scheduler may fall to another, so every setting of the attack is a line of its
own, with mean and standard deviation over seeds. The worst seed is added here: an attacker can train again. Nothing is
chosen, so the scores are those of all evaluation prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from statistics import mean, stdev
from typing import Any, NamedTuple


class Durability(NamedTuple):
    """A defense under one setting of the attack; scores in percent.

    Attributes:
        defense: the defense, which determines its filter.
        name: the defense with its settings, and what else is not the attacker's choice.
        setting: the attacker's choices other than the seed.
        seeds: the number of seeds whose HS is measured.
        mean: mean of HS over them; NaN without any.
        deviation: their sample standard deviation; NaN below two.
        worst: the highest HS; NaN without any.
        worst_seed: the seed that has it, the first of several; None without any.
        fa: mean of FA; NaN if not measured.
    """

    defense: str
    name: str
    setting: str
    seeds: int
    mean: float
    deviation: float
    worst: float
    worst_seed: int | None
    fa: float


def durability(defense: str, name: str, setting: str, cells: Sequence[Mapping[str, Any]], fa: float) -> Durability:
    """Return how a defense fares under a setting of the attack.

    Args:
        defense: the defense.
        name: its name in tables.
        setting: the setting's name.
        cells: the tidy rows of the setting, which differ in their seed.
        fa: mean FA of their models, in percent.
    """
    measured = [cell for cell in cells if cell["hs"] == cell["hs"]]
    scores = [float(cell["hs"]) for cell in measured]
    worst = max(measured, key=lambda cell: cell["hs"], default=None)
    return Durability(
        defense=defense,
        name=name,
        setting=setting,
        seeds=len(scores),
        mean=mean(scores) if scores else nan,
        deviation=stdev(scores) if len(scores) > 1 else nan,
        worst=nan if worst is None else float(worst["hs"]),
        worst_seed=None if worst is None else int(worst["seed"]),
        fa=fa,
    )
