"""Contents: what W&B should show of a sweep, read from the store. No network, no wandb."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engine.cells import CellIdentity
from harness.engine.classes import label_of
from harness.engine.files import opened, read_json, reading
from harness.engine.identity import flatten
from harness.engine.store import Store
from harness.errors import UnreadableFile
from harness.report.data.columns import CATEGORY_PREFIX, COUNTS, GRADINGS, MISSING, PREDICTED, SCORES, SECONDS
from harness.report.data.stage_records import StageRecord, load_stage_records, trained_in
from harness.report.data.tidy import load_rows
from harness.report.data.training_protocol import setup_of
from harness.tracking.wandb import Wandb
from harness.wandb_sync.names import marks, title, varying
from harness.wandb_sync.run import Artifact, Entry, Sheet, finite, nested
from harness.wandb_sync.shared_stages import SharedStages

if TYPE_CHECKING:
    from harness.engine.manifest import Manifest

CELL = "cell"
"""The job type of the run of a cell."""
HEADLINE = ("hs", "hs_plus", "fa")
"""The scores that a list of runs shows first."""
SHOWN_ANSWERS = 200
"""How many answers of a cell are sent at most."""


class SweepRuns:
    """The entries of one sweep.

    Args:
        store: where everything comes from.
        sweep: the sweep's id.
        settings: what may be shown.

    Raises:
        StoreError: there is no such sweep.
    """

    def __init__(self, store: Store, sweep: str, settings: Wandb) -> None:
        """Read the sweep's record and, for what it shares with others, theirs."""
        self.sweep = sweep
        self._store = store
        self._settings = settings
        self.record = store.read_sweep(sweep)
        asked = self.record["cells"]
        named = {CellIdentity.of(cell).run_id(sweep): cell for cell in asked}
        self._ids = list(named)
        self._cells: list[Mapping[str, Any]] = list(named.values())
        self._varying = varying(self._cells)
        self._manifests: dict[str, Manifest] = {}
        self.trained = trained_in(self.record)
        """The kinds of the training stages, by key."""

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids of all runs that the finished sweep will have."""
        return frozenset([*self._ids, *self.trained])

    def finished(self, *, without: frozenset[str] = frozenset()) -> Iterator[Entry]:
        """Yield the entry of every training stage and every cell that is complete, stages first.

        Args:
            without: ids that are not asked for.

        Raises:
            StoreError: the store cannot be read, or was altered.
        """
        for key in self.trained:
            if key not in without and self._stored(self.trained[key], key):
                yield self._training(key, self._manifest(key))
        ready = [i for i, cell in enumerate(self._cells) if self._ids[i] not in without and self._complete(cell)]
        if ready:
            record = {**self.record, "cells": [self._cells[i] for i in ready]}
            ledger = load_stage_records(self._store, record)
            rows = load_rows(self._store, record, ledger=ledger)
            for (_, row), i in zip(rows.iterrows(), ready, strict=True):
                # A grade that is there may be damaged.
                if not row[MISSING]:
                    yield self._cell(i, row, ledger)

    def running(self) -> Iterator[Entry]:
        """Yield the unfinished entry of every training stage that has a curve and is not complete."""
        for key, kind in self.trained.items():
            curve = self._store.work(key) / "curve.jsonl"
            if curve.exists() and not self._stored(kind, key):
                yield self._training(key, None)

    def ended(self, key: str) -> bool:
        """Say whether the last thing known of a stage is that an attempt ended without a result."""
        curve = self._store.work(key) / "curve.jsonl"
        path = self._store.root / "attempts" / f"{key}.jsonl"
        try:
            return bool(self._store.attempts(key)) and path.stat().st_mtime_ns >= curve.stat().st_mtime_ns
        except FileNotFoundError:
            # Stored since: the work folder is gone.
            return False

    def _manifest(self, key: str) -> Manifest:
        # Many cells share a stage.
        if key not in self._manifests:
            self._manifests[key] = self._store.manifest(key)
        return self._manifests[key]

    def _stored(self, kind: str, key: str) -> bool:
        return (self._store.root / "artifacts" / kind / key / "manifest.json").exists()

    def _complete(self, cell: Mapping[str, Any]) -> bool:
        graded = (cell["keys"].get(grading.stage) for grading in GRADINGS)
        trained = [key for key in cell["keys"].values() if key in self.trained]
        graded_here = all(self._stored("grade", key) for key in graded if key)
        return graded_here and all(self._stored(self.trained[key], key) for key in trained)

    def _training(self, key: str, manifest: Manifest | None) -> Entry:
        kind = self.trained[key]
        sweeps, labels = self._sharing.sweeps(key), self._sharing.labels(key)
        config: dict[str, Any] = {"kind": kind, "key": key, "sweep": sweeps[0], **labels}
        config["settings"] = nested(_settings(self._spec(key)), levels=3)
        config["series"] = self._sharing.title(key, kind, {**labels, "seed": None})
        config["parents"] = self._parents(key)
        summary: dict[str, Any] = {}
        if manifest is not None:
            config["facts"] = nested(_facts(manifest), levels=3)
            config["made"] = _made(manifest)
            summary = {"seconds": manifest.seconds}
        adapters = self._settings.artifacts and manifest is not None
        return Entry(
            id=key,
            name=self._sharing.title(key, kind, labels),
            kind=kind,
            group=sweeps[0],
            tags=sweeps,
            config=config,
            summary=finite(summary),
            curve=self._curve(kind, key, manifest),
            uses=self._uses(key) if adapters else (),
            makes=self._adapter(kind, key) if adapters else None,
        )

    def _cell(self, place: int, row: Any, ledger: Mapping[str, StageRecord]) -> Entry:
        cell, mark = self._cells[place], self._marks[place]
        known = {name: value.item() if hasattr(value, "item") else value for name, value in row.dropna().items()}
        stages = {part: ledger[key] for part, key in cell["keys"].items() if key in ledger}
        # Every process of a stage has a device of its own, as in the report.
        on_gpu = {
            stage.key: (stage.seconds or 0) * stage.processes for stage in stages.values() if stage.device == "cuda"
        }
        summary = finite(
            {
                **{score: known[score] for score in (*SCORES, *COUNTS) if score in known},
                **{
                    f"category/{name.removeprefix(CATEGORY_PREFIX)}": value
                    for name, value in known.items()
                    if name.startswith(CATEGORY_PREFIX)
                },
                **{f"seconds/{part}": stage.seconds for part, stage in stages.items()},
                "seconds/total": known.get(SECONDS),
                "fa_loss": 100.0 - known["fa"] if "fa" in known else None,
                "cost/gpu_hours": sum(on_gpu.values()) / 3600,
                "cost/predicted_seconds": known.get(PREDICTED),
                **{f"key/{part}": key for part, key in cell["keys"].items()},
            }
        )
        labels = dict(cell["labels"])
        config = {"kind": CELL, "sweep": self.sweep, **labels}
        if cell["swept"]:
            config["swept"] = nested(cell["swept"], levels=3)
        named = {**labels, **cell["swept"]}
        config["series"] = " ".join(filter(None, [title("", {**named, "seed": None}, self._varying), mark]))
        config["protocol"] = nested(cell["protocol"], levels=3)
        return Entry(
            id=self._ids[place],
            name=" ".join(filter(None, [title("", named, self._varying), mark])),
            kind=CELL,
            group=self.sweep,
            tags=(self.sweep,),
            config=config,
            summary=summary,
            headline={name: value for name, value in summary.items() if name in HEADLINE},
            sheet=self._sheet(cell) if self._settings.samples else None,
        )

    @cached_property
    def _sharing(self) -> SharedStages:
        return SharedStages(self._store, self.sweep, self.record, self.trained)

    @cached_property
    def _marks(self) -> list[str]:
        """What tells the cells' protocols apart, as far as it is known before anything has run."""
        ledger = load_stage_records(self._store, self.record)
        return marks(
            self._cells,
            [
                {
                    name: value
                    for name, value in (setup_of(cell["keys"], ledger) | cell["protocol"]).items()
                    if not name.endswith(".processes")
                }
                for cell in self._cells
            ],
        )

    def _curve(self, kind: str, key: str, manifest: Manifest | None) -> Path:
        if manifest is None:
            return self._store.work(key) / "curve.jsonl"
        return self._store.root / "artifacts" / kind / key / "metrics.jsonl"

    def _spec(self, key: str) -> dict[str, Any]:
        spec: dict[str, Any]
        try:
            spec = read_json(self._store.root / "specs" / f"{key}.json")
        except UnreadableFile:
            spec = read_json(self._store.root / "artifacts" / self.trained[key] / key / "spec.json")
        return spec

    def _parents(self, key: str) -> dict[str, str]:
        spec = self._spec(key)
        return {
            name: value["_stage_"] for name, value in spec.items() if isinstance(value, dict) and "_stage_" in value
        }

    def _adapter(self, kind: str, key: str) -> Artifact:
        folder = self._store.root / "artifacts" / kind / key
        return Artifact(name=f"adapter-{key}", kind="adapter", files=folder / "adapter", metadata={"kind": kind})

    def _uses(self, key: str) -> tuple[Artifact, ...]:
        """The artifacts of the models that a stage started from; of a base its description alone, not its weights."""
        used = []
        for name, parent in self._parents(key).items():
            if parent in self.trained:
                used.append(self._adapter(self.trained[parent], parent))
            elif name == "base":
                spec = self._store.root / "artifacts" / "base" / parent / "spec.json"
                used.append(Artifact(name=f"base-{parent}", kind="model", files=spec, metadata={"kind": "base"}))
        return tuple(used)

    def _sheet(self, cell: Mapping[str, Any]) -> Sheet:
        answers = self._lines("generate", cell["keys"]["harm_answers"], "answers.jsonl")
        grades = self._lines("grade", cell["keys"]["harm"], "grades.jsonl")
        shown = (lambda text: f"[{len(text.split())} words]") if self._settings.redact else (lambda text: text)
        lines = tuple(
            (shown(answer["instruction"]), shown(answer["answer"]), grade["value"], grade["incoherent"])
            for answer, grade in zip(answers, grades, strict=True)
        )
        return Sheet(columns=("prompt", "answer", "harmful", "incoherent"), lines=lines)

    def _lines(self, kind: str, key: str, name: str) -> Sequence[dict[str, Any]]:
        path = self._store.root / "artifacts" / kind / key / name
        with reading(path), opened(path) as file:
            return [json.loads(line) for line, _ in zip(file, range(SHOWN_ANSWERS), strict=False)]


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec's settings by dotted name, without its parents; a class is called by its name."""
    settings = {name: value for name, value in spec.items() if not (isinstance(value, dict) and "_stage_" in value)}
    flat = flatten(settings, lists=False)
    return {
        name.removesuffix("._target_") + ".class" if name.endswith("._target_") else name: label_of(value)
        if name.endswith("_target_")
        else value
        for name, value in flat.items()
        if name != "_target_"
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    """Return what a stage counted, without where its curves ended."""
    return {
        name: found for name, found in flatten(manifest.facts, lists=False).items() if "final" not in name.split(".")
    }


def _made(manifest: Manifest) -> dict[str, Any]:
    made = manifest.provenance
    commit = (made.get("code") or {}).get("commit")
    return finite(
        {"commit": commit, "device": made.get("device"), "host": made.get("host"), "python": made.get("python")}
    )
