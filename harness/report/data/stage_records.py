"""Stage records: properties, cost and provenance of each stage of a sweep."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.engine.files import read_json
from harness.engine.layout import MANIFEST
from harness.engine.store import Store
from harness.errors import UnreadableFile
from harness.report.data.earlier_records import DECODED, KINDS, perhaps_cut, settings_in, traits_of

SWITCHES = ("compiled", "padding_mask", "causal_attention", "fused_norms", "fused", "tf32", "autocast", "attention")
"""Facts of a training's passes by which its gradients differ, if only by rounding."""
LATER = ("fused_norms", "fused")
"""Switches that earlier versions did not have: off is what they did. Of one version, norms alone were fused."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One distinct stage of a sweep.

    Attributes:
        key: key of the stage.
        kind: kind of the stage.
        uses: number of cells that need it.
        seconds: wall time of the successful attempt; None if it is not finished.
        predicted: wall time in seconds predicted when the sweep was planned; None if there was no prediction.
        facts: the facts in its manifest.
        provenance: the provenance in its manifest.
        spec: its settings, from the stored spec.
        trains: whether it changes weights, so that it may have a curve and a defense may act in it.
        parallel: whether it can run on several processes.
        attacked: whether it or one of its ancestors uses the attacker's data.
        settings: settings that describe the training, as dotted paths in the spec by their names in the configuration.
            None for a stage that takes no part in training; its spec is not read.
        damaged: whether its manifest exists but cannot be read; cost, facts and provenance are then unknown.
        perhaps_cut: upper bound of the truncated prompts, for stages of an earlier version, which did not count them.
        reported_shares: the facts that are columns of the cells' rows, each with its meaning.
        made_of: keys of its ancestors that are no part of a cell, such as the rounds of a federation.
    """

    key: str
    kind: str
    uses: int
    seconds: float | None = None
    predicted: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = False
    parallel: bool = False
    attacked: bool = False
    settings: Mapping[str, str] | None = None
    damaged: bool = False
    perhaps_cut: int = 0
    reported_shares: Mapping[str, str] = field(default_factory=dict)
    made_of: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the stage states about itself in the rows of its cells."""
        return tuple(map(str, self.facts.get("notes") or ()))

    @property
    def shares(self) -> dict[str, float | None]:
        """The reported facts in percent; None where undefined, or while the stage is not finished."""
        found = {name: self.facts.get(name) for name in self.reported_shares}
        return {name: None if share is None else 100.0 * share for name, share in found.items()}

    @property
    def own_data(self) -> frozenset[str]:
        """Spec fields with settings of the training itself; other data fields belong to the method."""
        return frozenset(path.partition(".")[0] for path in (self.settings or {}).values())

    @property
    def finished(self) -> bool:
        """Whether it has a readable manifest."""
        return self.seconds is not None

    @property
    def processes(self) -> int:
        """The world size of a finished stage."""
        return int(self.provenance.get("processes") or 1)

    @property
    def passes(self) -> str:
        """The numeric switches of a finished training that differ from those of a CPU."""
        found: Mapping[str, Any] = self.facts.get("passes") or {}
        told = [name for name in SWITCHES if name in found and (found[name] or name not in LATER)]
        return ", ".join(f"{name} {found[name]}" for name in told) or "plain"

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How a finished stage decoded answers, if it did: the path, its arithmetic."""
        found: Mapping[str, Any] = self.facts.get("decoding") or (DECODED.get(self.kind, {}) if self.finished else {})
        return found

    @property
    def shrunk(self) -> bool:
        """Whether it was rerun with smaller micro-batches after running out of memory."""
        return bool(self.facts.get("shrunk") or self.provenance.get("shrunk"))

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``; empty while the stage has not run."""
        return str(self.provenance.get("device", "")).partition(":")[0]


def load_stage_records(store: Store, record: Mapping[str, Any]) -> dict[str, StageRecord]:
    """Return the stages of a sweep by key, in the order of its cells; those that are no part of one before their user.

    Artifacts are not verified; a stage whose manifest cannot be read is marked as damaged.

    Args:
        store: the store.
        record: the sweep record; its ``stages`` and ``predicted`` may be absent.
    """
    planned = record.get("stages", {})
    parts = {key: part for cell in record["cells"] for part, key in cell["keys"].items() if key is not None}
    made_of = {key: _unnamed_ancestors(key, planned, parts) for key in parts}
    named = [set(cell["keys"].values()) - {None} for cell in record["cells"]]
    uses = Counter(each for keys in named for each in keys.union(*(made_of[key] for key in keys)))
    ordered = dict.fromkeys(each for key in parts for each in (*made_of[key], key))
    folders = store.layout.folders_by_key()
    predicted = record.get("predicted", {})
    stage_records = {}
    for key in ordered:
        part = parts.get(key, "")
        folder = folders.get(key)
        recorded = planned.get(key, {})
        kind = folder.parent.name if folder else _kind(part, recorded)
        traits = recorded if "trains" in recorded else traits_of(kind)
        settings = traits["settings"]
        spec = {} if settings is None else _json(store.layout.spec(key))
        manifest = _json(folder / MANIFEST) if folder else {}
        facts = manifest.get("facts", {})
        uncounted = folder is not None and kind == "generate" and "prompts" in facts and "cut" not in facts
        stage_records[key] = StageRecord(
            key=key,
            kind=kind,
            uses=uses[key],
            seconds=manifest.get("seconds"),
            predicted=predicted.get(kind),
            facts=facts,
            provenance=manifest.get("provenance", {}),
            spec=spec,
            trains=traits["trains"],
            parallel=traits["parallel"],
            attacked=traits["attacked"],
            settings=settings if settings is None or traits is recorded else settings_in(settings, spec),
            reported_shares=recorded.get("reported_shares", {}),
            made_of=made_of.get(key, ()),
            perhaps_cut=perhaps_cut(folder, _json(store.layout.spec(key))) if folder and uncounted else 0,
            # lexists: a dangling link or a folder in its place is a damaged manifest as well.
            damaged=folder is not None and "seconds" not in manifest and os.path.lexists(folder / MANIFEST),
        )
    return stage_records


def trained_in(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of each training stage of a sweep by key, in the order of cells and of the chain."""
    planned = record.get("stages", {})
    trained = {}
    for cell in record["cells"]:
        for part, key in cell["keys"].items():
            recorded = planned.get(key, {})
            kind = _kind(part, recorded)
            if key is not None and (recorded if "trains" in recorded else traits_of(kind))["trains"]:
                trained[key] = kind
    return trained


def _unnamed_ancestors(key: str, planned: Mapping[str, Any], named: Collection[str]) -> tuple[str, ...]:
    """Return the ancestors of a stage that are reached from it through stages that are no parts of cells, in order."""
    found: dict[str, None] = {}
    pending = [key]
    while pending:
        for parent in planned.get(pending.pop(), {}).get("parents", ()):
            if parent not in named and parent not in found:
                found[parent] = None
                pending.append(parent)
    return tuple(reversed(found))


def _kind(part: str, recorded: Mapping[str, Any]) -> str:
    return str(recorded.get("kind") or KINDS.get(part, "grade"))


def _json(path: Path) -> dict[str, Any]:
    try:
        read = read_json(path)
    except UnreadableFile:
        return {}
    return read if isinstance(read, dict) else {}
