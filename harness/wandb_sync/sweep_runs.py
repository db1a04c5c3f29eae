"""The W&B runs of a sweep, read from the store. Uses neither the network nor wandb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.engine.cells import CellIdentity
from harness.engine.classes import label_of
from harness.engine.files import read_json, reading
from harness.engine.identity import flatten
from harness.engine.layout import SPEC
from harness.engine.store import Store
from harness.errors import UnreadableFile
from harness.report.data.columns import (
    CATEGORY_PREFIX,
    COUNTS,
    GRADINGS,
    MISSING,
    PREDICTED,
    SCORES,
    SECONDS,
    SHARE_PREFIX,
)
from harness.report.data.stage_records import StageRecord, load_stage_records, trained_in
from harness.report.data.tidy import load_rows
from harness.report.data.training_protocol import known_late, training_protocol_of
from harness.stages.generate import read_answers
from harness.stages.grade import graded_samples, read_grades
from harness.stages.train_adapter import ADAPTER
from harness.tracking.jsonl import CURVE, curve_of
from harness.tracking.wandb import Wandb
from harness.wandb_sync.names import protocol_suffixes, title, varying
from harness.wandb_sync.run import Artifact, RunRecord, Table, finite, nested
from harness.wandb_sync.shared_stages import SharedStages

if TYPE_CHECKING:
    from harness.engine.manifest import Manifest

CELL = "cell"
"""Job type of the run of a cell."""
HEADLINE = ("hs", "hs_plus", "fa", "over_refusal")
"""Scores that are logged as metrics of a cell's run."""
SHOWN_ANSWERS = 200
"""Maximum number of prompts per cell whose generations are uploaded."""


class SweepRuns:
    """The runs of one sweep.

    Args:
        store: the store.
        sweep: the sweep's id.
        settings: what is uploaded.

    Raises:
        StoreError: there is no such sweep.
    """

    def __init__(self, store: Store, sweep: str, settings: Wandb) -> None:
        """Read the sweep's record."""
        self.sweep = sweep
        self._store = store
        self._settings = settings
        self.record = store.read_sweep(sweep)
        by_id = {CellIdentity.of(cell).run_id(sweep): cell for cell in self.record["cells"]}
        self._ids = list(by_id)
        self._cells: list[Mapping[str, Any]] = list(by_id.values())
        self._varying = varying(self._cells)
        self._manifests: dict[str, Manifest] = {}
        self.trained = trained_in(self.record)
        """The kinds of the training stages, by key."""

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids of all runs of the sweep, complete or not."""
        return frozenset([*self._ids, *self.trained])

    def finished(self, *, without: frozenset[str] = frozenset()) -> Iterator[RunRecord]:
        """Yield the runs of complete training stages, then those of complete cells.

        Args:
            without: ids to leave out.

        Raises:
            StoreError: the store cannot be read, or an artifact does not match its manifest.
        """
        for key in self.trained:
            if key not in without and self._is_stored(self.trained[key], key):
                yield self._training(key, self._manifest(key))
        ready = [i for i, cell in enumerate(self._cells) if self._ids[i] not in without and self._is_complete(cell)]
        if ready:
            record = {**self.record, "cells": [self._cells[i] for i in ready]}
            stage_records = load_stage_records(self._store, record)
            rows = load_rows(self._store, record, stage_records=stage_records)
            for (_, row), i in zip(rows.iterrows(), ready, strict=True):
                # A stored grade may be damaged.
                if not row[MISSING]:
                    yield self._cell(i, row, stage_records)

    def running(self) -> Iterator[RunRecord]:
        """Yield the partial runs of training stages that have a curve but are not complete."""
        for key, kind in self.trained.items():
            curve = self._store.work(key) / CURVE
            if curve.exists() and not self._is_stored(kind, key):
                yield self._training(key, None)

    def ended(self, key: str) -> bool:
        """Return whether the last attempt of a stage ended without a result, and none has started since."""
        curve = self._store.work(key) / CURVE
        path = self._store.layout.attempts_of(key)
        try:
            return bool(self._store.attempts(key)) and path.stat().st_mtime_ns >= curve.stat().st_mtime_ns
        except FileNotFoundError:
            # The stage was stored in the meantime, and its work folder removed.
            return False

    def _manifest(self, key: str) -> Manifest:
        # Cached, because cells share stages.
        if key not in self._manifests:
            self._manifests[key] = self._store.manifest(key)
        return self._manifests[key]

    def _is_stored(self, kind: str, key: str) -> bool:
        return self._store.layout.manifest(kind, key).exists()

    def _is_complete(self, cell: Mapping[str, Any]) -> bool:
        grades = (cell["keys"].get(grading.stage) for grading in GRADINGS)
        trained = [key for key in cell["keys"].values() if key in self.trained]
        graded = all(self._is_stored("grade", key) for key in grades if key)
        return graded and all(self._is_stored(self.trained[key], key) for key in trained)

    def _training(self, key: str, manifest: Manifest | None) -> RunRecord:
        kind = self.trained[key]
        sweeps, labels = self._sharing.sweeps(key), self._sharing.labels(key)
        config: dict[str, Any] = {"kind": kind, "key": key, "sweep": sweeps[0], **labels}
        config["settings"] = nested(_settings(self._spec(key)), levels=3)
        config["series"] = self._sharing.title(key, kind, {**labels, "seed": None})
        config["parents"] = self._parents(key)
        summary: dict[str, Any] = {}
        if manifest is not None:
            config["facts"] = nested(_facts(manifest), levels=3)
            config["made"] = _provenance(manifest)
            summary = {"seconds": manifest.seconds}
        adapters = self._settings.artifacts and manifest is not None
        return RunRecord(
            id=key,
            name=self._sharing.title(key, kind, labels),
            kind=kind,
            group=sweeps[0],
            tags=sweeps,
            config=config,
            summary=finite(summary),
            curve=curve_of(self._store.layout, kind, key),
            uses=self._uses(key) if adapters else (),
            makes=self._adapter(kind, key) if adapters else None,
        )

    def _cell(self, index: int, row: Any, stage_records: Mapping[str, StageRecord]) -> RunRecord:
        cell, suffix = self._cells[index], self._suffixes[index]
        known = {name: value.item() if hasattr(value, "item") else value for name, value in row.dropna().items()}
        stages = {part: stage_records[key] for part, key in cell["keys"].items() if key in stage_records}
        # Each process of a stage has its own device, as in the report.
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
                **{
                    f"share/{name.removeprefix(SHARE_PREFIX)}": value
                    for name, value in known.items()
                    if name.startswith(SHARE_PREFIX)
                },
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
        config["series"] = " ".join(filter(None, [title("", {**named, "seed": None}, self._varying), suffix]))
        config["protocol"] = nested(cell["protocol"], levels=3)
        return RunRecord(
            id=self._ids[index],
            name=" ".join(filter(None, [title("", named, self._varying), suffix])),
            kind=CELL,
            group=self.sweep,
            tags=(self.sweep,),
            config=config,
            summary=summary,
            headline={name: value for name, value in summary.items() if name in HEADLINE},
            sheet=self._table(cell, stages) if self._settings.samples else None,
        )

    @cached_property
    def _sharing(self) -> SharedStages:
        return SharedStages(self._store, self.sweep, self.record, self.trained)

    @cached_property
    def _suffixes(self) -> list[str]:
        """Protocol suffixes of the cells' names, from what is known before any stage has run."""
        stage_records = load_stage_records(self._store, self.record)
        return protocol_suffixes(
            self._cells,
            [
                {
                    name: value
                    for name, value in (training_protocol_of(cell["keys"], stage_records) | cell["protocol"]).items()
                    if not known_late(name)
                }
                for cell in self._cells
            ],
        )

    def _spec(self, key: str) -> dict[str, Any]:
        spec: dict[str, Any]
        try:
            spec = read_json(self._store.layout.spec(key))
        except UnreadableFile:
            spec = read_json(self._store.layout.artifact(self.trained[key], key) / SPEC)
        return spec

    def _parents(self, key: str) -> dict[str, str]:
        spec = self._spec(key)
        return {
            name: value["_stage_"] for name, value in spec.items() if isinstance(value, dict) and "_stage_" in value
        }

    def _adapter(self, kind: str, key: str) -> Artifact:
        folder = self._store.layout.artifact(kind, key)
        if not (folder / ADAPTER).is_dir():
            # A model's own weights are gigabytes, and stay in the store; what they were trained with identifies them.
            return Artifact(name=f"weights-{key}", kind="weights", files=folder / SPEC, metadata={"kind": kind})
        return Artifact(name=f"adapter-{key}", kind="adapter", files=folder / ADAPTER, metadata={"kind": kind})

    def _uses(self, key: str) -> tuple[Artifact, ...]:
        """Return the input artifacts of a stage; of a base model only its spec, not its weights."""
        used = []
        for name, parent in self._parents(key).items():
            if parent in self.trained:
                used.append(self._adapter(self.trained[parent], parent))
            elif name == "base":
                spec = self._store.layout.artifact("base", parent) / SPEC
                used.append(Artifact(name=f"base-{parent}", kind="model", files=spec, metadata={"kind": "base"}))
        return tuple(used)

    def _table(self, cell: Mapping[str, Any], stages: Mapping[str, StageRecord]) -> Table:
        layout, keys = self._store.layout, cell["keys"]
        with reading(layout.artifacts):
            kind = stages["harm_answers"].kind
            answers = read_answers(layout.artifact(kind, keys["harm_answers"]), SHOWN_ANSWERS)
            grades = read_grades(layout.artifact("grade", keys["harm"]), SHOWN_ANSWERS)
        shown = (lambda text: f"[{len(text.split())} words]") if self._settings.redact else (lambda text: text)
        lines = tuple(
            (shown(answer["instruction"]), shown(answer["answer"]), grade["value"], grade["incoherent"])
            for answer, grade in graded_samples(answers, grades)
        )
        return Table(columns=("prompt", "answer", "harmful", "incoherent"), lines=lines)


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec's settings by dotted name, without its parents; classes are replaced by their labels."""
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
    """Return the facts in a stage's manifest, without the final values of its curve."""
    return {
        name: found for name, found in flatten(manifest.facts, lists=False).items() if "final" not in name.split(".")
    }


def _provenance(manifest: Manifest) -> dict[str, Any]:
    made = manifest.provenance
    commit = (made.get("code") or {}).get("commit")
    return finite(
        {"commit": commit, "device": made.get("device"), "host": made.get("host"), "python": made.get("python")}
    )
