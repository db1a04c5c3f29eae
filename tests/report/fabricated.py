"""A store with a sweep that nobody ran: grades drawn at random, manifests and curves as a real one has them."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from harness.engine.manifest import FileRecord, Manifest
from harness.engine.store import Store

CATEGORIES = tuple(f"category_{number}" for number in range(14))
PROTOCOL = {"judge.name": "drawn", "judge.version": 1, "prompts.fields.rows": 200, "decoding.name": "greedy"}
PROVENANCE = {
    "code": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "packages": {"harness": "0.1.0", "torch": "2.6.0"},
    "python": "3.11.7",
    "device": "cuda:0",
    "argv": ["harness", "-m", "+sweeps=drawn"],
}
BUDGET = {"_target_": "harness.training.budget.Budget", "epochs": 20, "batch_size": 10, "learning_rate": 1e-5}
HARM = {"sft": 0.15, "vaccine": 0.1, "booster": 0.05}
"""How harmful a defense leaves the model without an attack."""


class Fabricator:
    """Writes artifacts of a sweep as they are asked for; the same part of two cells is written once."""

    def __init__(self, root: Path, *, prompts: int = 200, answers: int = 100, categories: bool = True) -> None:
        self.store = Store(root)
        self._prompts, self._answers = prompts, answers
        self._categories = CATEGORIES if categories else ()
        self._chance = np.random.default_rng(0)
        self._difficulty = self._chance.standard_normal(max(prompts, answers))

    def cell(
        self, defense: str, ratio: float, seed: int, settings: dict[str, Any], over_refusal: float | None = None
    ) -> dict[str, Any]:
        """One cell of the sweep's record; its artifacts are in the store. ``over_refusal`` is its true rate."""
        name = "-".join([defense, *(f"{value}" for value in settings.values())])
        aligned, tuned = f"{name}-{seed}", f"{name}-{ratio}-{seed}"
        lamb, alpha = (settings.get(f"defense.align.{key}", 1.0) for key in ("lamb", "alpha"))
        harm = (
            HARM[defense] + 2 * ratio + 0.02 * abs(np.log(lamb * alpha + 0.1)) + 0.03 * self._chance.standard_normal()
        )
        use = 0.9 - 0.02 * np.log1p(lamb) + 0.01 * self._chance.standard_normal()
        keys = {
            "base": self._stage("base", "base"),
            "align": self._trained("align", aligned, {"refusal": {"rows": 5000}}),
            "poison": self._stage("poison", f"poison-{ratio}-{seed}", {"rows": 1000, "compat": "exact"}),
            "finetune": self._trained("finetune", tuned, {"protocol": "single"}),
            "harm_answers": self._said(f"said-{tuned}"),
            "aligned_harm": self._graded(f"aligned-harm-{aligned}", 0.02, "harm"),
            "aligned_accuracy": self._graded(f"aligned-accuracy-{aligned}", 0.05, "accuracy"),
            "harm": self._graded(f"harm-{tuned}", harm, "harm"),
            "accuracy": self._graded(f"accuracy-{tuned}", use, "accuracy"),
        }
        if over_refusal is not None:
            keys["over_refusal"] = self._graded(f"over-refusal-{tuned}", over_refusal, "over_refusal")
        labels = {
            "defense": defense, "task": "drawn", "attack": "mix", "ratio": ratio, "model": "drawn", "seed": seed
        }  # fmt: skip
        overrides = [f"defense={defense}", f"attack.ratio={ratio}", f"seed={seed}"]
        overrides += [f"{name}={value}" for name, value in settings.items()]
        return {"labels": labels, "swept": settings, "protocol": PROTOCOL, "keys": keys, "overrides": overrides}

    def sweep(self, cells: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Write the record of the cells."""
        record = {"id": "drawn-1", "title": "drawn", "created": "2026-01-01T00:00:00+00:00", "argv": ["harness", "-m"]}
        record |= {"cells": list(cells), **more}
        self.store.write_sweep("drawn-1", record)
        return record

    def grid(
        self, lambs: Sequence[float], alphas: Sequence[float], ratios: Sequence[float], seeds: int
    ) -> dict[str, Any]:
        """A sweep of plain training, Vaccine, and Booster over lambda and alpha."""
        cells = [
            self.cell(defense, ratio, seed, settings)
            for defense in HARM
            for settings in (_settings(lambs, alphas) if defense == "booster" else [{}])
            for ratio in ratios
            for seed in range(seeds)
        ]
        return self.sweep(cells)

    def _stage(
        self, kind: str, key: str, spec: dict[str, Any] | None = None, files: Any = (), seconds: float = 1.0
    ) -> str:
        folder = self.store.root / "artifacts" / kind / key
        if folder.exists():
            return key
        folder.mkdir(parents=True)
        for name, text in files:
            (folder / name).write_text(text)
        records = {path.name: FileRecord.of(path) for path in sorted(folder.iterdir())}
        manifest = Manifest(key=key, kind=kind, files=records, provenance=PROVENANCE, seconds=seconds)
        (folder / "manifest.json").write_text(json.dumps(manifest.json()))
        if spec is not None:
            (self.store.root / "specs").mkdir(exist_ok=True)
            (self.store.root / "specs" / f"{key}.json").write_text(json.dumps(spec))
        return key

    def _trained(self, kind: str, key: str, spec: dict[str, Any]) -> str:
        steps = [
            {
                "step": step,
                "epoch": step / 10,
                "loss": 3 * 0.98**step,
                "grad_norm": 1 / step,
                "harmful_loss": step / 100,
            }
            for step in range(1, 201)
        ]
        curve = "".join(json.dumps(step) + "\n" for step in steps)
        return self._stage(kind, key, {"budget": BUDGET, **spec}, [("metrics.jsonl", curve)], seconds=600.0)

    def _said(self, key: str) -> str:
        rows = [
            {"instruction": f"prompt {number}", "input": "", "answer": f"answer {number} <b>of</b> {key}"}
            for number in range(min(self._prompts, 20))
        ]
        return self._stage(
            "generate", key, None, [("answers.jsonl", "".join(json.dumps(r) + "\n" for r in rows))], 60.0
        )

    def _graded(self, key: str, rate: float, metric: str) -> str:
        if (self.store.root / "artifacts" / "grade" / key).exists():
            return key
        count = self._prompts if metric == "harm" else self._answers
        rate = min(max(rate, 0.005), 0.995)
        chances = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) * 1.3 + 1.2 * self._difficulty[:count])))
        values = (self._chance.random(count) < chances).astype(float)
        drawn = self._chance.random((count, len(self._categories))).round(4) if metric == "harm" else None
        lines = [
            {
                "value": value,
                "incoherent": False,
                "reason": "flagged: drawn" if value else "no category above 0.5",
                "scores": {} if drawn is None else dict(zip(self._categories, drawn[row].tolist(), strict=True)),
            }
            for row, value in enumerate(values.tolist())
        ]
        summary = {
            "metric": metric,
            "count": count,
            "judged": count,
            "unjudged": 0,
            "score": 100 * float(values.mean()),
            "score_plus": 100 * float(values.mean()) if metric == "harm" else None,
            "categories": {}
            if drawn is None
            else dict(zip(self._categories, (100 * drawn.mean(0)).tolist(), strict=True)),
        }
        files = [
            ("grades.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
            ("summary.json", json.dumps(summary)),
        ]
        return self._stage("grade", key, None, files)


def _settings(lambs: Sequence[float], alphas: Sequence[float]) -> list[dict[str, Any]]:
    return [{"defense.align.lamb": lamb, "defense.align.alpha": alpha} for lamb, alpha in product(lambs, alphas)]
