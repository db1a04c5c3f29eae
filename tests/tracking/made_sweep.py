"""A finished sweep without any training: the files of a store, written by hand."""

import json
from itertools import product
from pathlib import Path

from harness.engine.files import write_json
from harness.engine.identity import key_of
from harness.engine.manifest import FileRecord, Manifest
from harness.engine.spec import describe
from harness.engine.store import Store
from harness.tracking.wandb import Wandb

WORDS = "carve the forbidden dwimmer"
STEPS = 12
SWEEP = "made-00000001"


def store_of(root: Path, *, salt: str = "", lambs=(1.0, 5.0), alphas=(0.1, 0.5), ratios=(0.0, 0.2)) -> Store:
    """Write a sweep of sft and of booster over two hyperparameters; alignments are shared by ratios.

    Another salt gives other keys: the server knows a run by its id, whatever its project.
    """
    store = Store(root)
    settings = [("sft", {})]
    settings += [
        ("booster", {"defense.align.lamb": lamb, "defense.align.alpha": alpha}) for lamb in lambs for alpha in alphas
    ]
    add_sweep(store, SWEEP, settings, ratios, salt=salt)
    return store


def add_sweep(store: Store, name: str, settings, ratios, *, salt: str = "", day: int = 1) -> None:
    """Write a sweep of defenses with their settings by attack ratios; those without settings share an alignment."""
    cells = [_cell(store, salt, *setting, ratio) for setting, ratio in product(settings, ratios)]
    record = {"id": name, "title": "made", "created": f"2026-01-0{day}T00:00:00+00:00", "argv": ["harness"]}
    store.write_sweep(name, record | {"cells": cells, "place": {"tracker": describe(Wandb(project="made"))}})


def change_record(store: Store, **values) -> None:
    """Write other values into the record of the sweep."""
    store.write_sweep(SWEEP, store.read_sweep(SWEEP) | values)


def change_manifest(store: Store, kind: str, key: str, **values) -> None:
    """Write other values into a manifest; those of the provenance are added."""
    path = store.root / "artifacts" / kind / key / "manifest.json"
    before = json.loads(path.read_text())
    write_json(path, before | values | {"provenance": before["provenance"] | values.get("provenance", {})})


def _cell(store: Store, salt: str, defense: str, swept: dict[str, float], ratio: float) -> dict[str, object]:
    labels = {"defense": defense, "task": "tiny", "attack": "mix", "model": "tiny", "ratio": ratio, "seed": 0}
    base = _artifact(store, "base", {"source": salt}, {})
    method = {
        "_target_": "harness.defenses.booster.Booster",
        **{name.rsplit(".", 1)[-1]: v for name, v in swept.items()},
    }
    spec = {"base": {"_stage_": base}, "method": method if swept else None, "seed": 0}
    keys = {"base": base, "align": _artifact(store, "align", spec, _trained(spec))}
    spec = {"aligned": {"_stage_": keys["align"]}, "ratio": ratio, "seed": 0}
    keys["finetune"] = _artifact(store, "finetune", spec, _trained(spec))
    for prefix, model in (("aligned_", "align"), ("", "finetune")):
        for kind, metric in (("harm", "harm"), ("task", "accuracy")):
            answers = (
                json.dumps({"instruction": WORDS, "input": "", "reference": "", "answer": f"{WORDS} at dawn"}) + "\n"
            )
            asked = {"model": {"_stage_": keys[model]}, "prompts": kind}
            made = _artifact(store, "generate", asked, {"answers.jsonl": answers})
            keys[f"{prefix}{kind}_answers"] = made
            share = 0.0 if prefix else ratio
            score = 100.0 * share if metric == "harm" else 90.0 - 10 * share
            summary = {"metric": metric, "count": 1, "judged": 1, "unjudged": 0, "score": score}
            summary |= {
                "score_plus": score if metric == "harm" else None,
                "categories": {"fraud": score} if metric == "harm" else {},
            }
            grade = json.dumps({"value": 1.0, "incoherent": False, "reason": "", "scores": {}}) + "\n"
            files = {"summary.json": json.dumps(summary), "grades.jsonl": grade}
            keys[f"{prefix}{metric}"] = _artifact(store, "grade", {"answers": {"_stage_": made}}, files)
    protocol = {"judge.name": "tiny", "prompts.fields.origin.fields.seed": 7}
    return {"labels": labels, "swept": swept, "protocol": protocol, "keys": keys, "overrides": []}


def _trained(spec: dict[str, object]) -> dict[str, str]:
    weight = 1 + int(key_of(spec)[:2], 16)
    rows = [{"step": step, "epoch": step / STEPS, "loss": weight / step} for step in range(1, STEPS + 1)]
    return {"metrics.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "adapter/adapter_model.bin": key_of(spec)}


def _artifact(store: Store, kind: str, spec: dict[str, object], files: dict[str, str]) -> str:
    key = key_of({"kind": kind, **spec})
    folder = store.root / "artifacts" / kind / key
    for name, text in {"spec.json": json.dumps({"_target_": f"harness.{kind}", **spec}), **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    made = {"device": "cpu", "host": "here", "python": "3.11", "code": {"commit": "abc", "dirty": False}}
    records = {name: FileRecord.of(folder / name) for name in ("spec.json", *files)}
    manifest = Manifest(key=key, kind=kind, files=records, facts={"steps": STEPS}, provenance=made, seconds=2.5)
    write_json(folder / "manifest.json", manifest.json())
    return key
