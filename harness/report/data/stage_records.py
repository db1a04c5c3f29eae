"""The ledger of a sweep: what each of its stages is, what it cost and what it ran on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.engine.files import read_json
from harness.engine.layout import MANIFEST
from harness.engine.store import Store
from harness.errors import UnreadableFile
from harness.report.data.earlier_records import DECODED, KINDS, perhaps_cut, settings_in, traits_of


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One distinct stage of a sweep.

    Attributes:
        key: of the stage.
        kind: its name.
        uses: how many cells need it.
        seconds: wall time of the attempt that finished it; None while there is none.
        predicted: wall time as it was predicted when the sweep was planned; None if it was not.
        facts: what the stage counted.
        provenance: what it ran on.
        spec: its settings, as frozen when it was planned.
        trains: whether it changes weights: then it may have a curve, and a defense may act in it.
        parallel: whether several processes can share it.
        attacked: whether the attacker's data are upstream of it, or its own.
        settings: which of its settings say how a model was trained: by their name in a configuration, their dotted path
            in the spec. None for a stage that takes no part in training; its spec is not read.
        damaged: whether it has a manifest that cannot be read; then nothing above is known of it.
        perhaps_cut: how many prompts may have been cut in answers of an earlier version, which did not count them.
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

    @property
    def own_data(self) -> frozenset[str]:
        """The fields that hold recorded settings; other data of a training stage are its method's."""
        return frozenset(path.partition(".")[0] for path in (self.settings or {}).values())

    @property
    def finished(self) -> bool:
        """Whether it has a manifest, which says what it ran on."""
        return self.seconds is not None

    @property
    def processes(self) -> int:
        """The world size of a finished stage."""
        return int(self.provenance.get("processes") or 1)

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How a finished stage decoded answers, if it did: the path, its arithmetic."""
        found: Mapping[str, Any] = self.facts.get("decoding") or (DECODED.get(self.kind, {}) if self.finished else {})
        return found

    @property
    def shrunk(self) -> bool:
        """Whether memory ran out and the stage was run again with fewer rows at once."""
        return bool(self.facts.get("shrunk") or self.provenance.get("shrunk"))

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``; empty while the stage has not run."""
        return str(self.provenance.get("device", "")).partition(":")[0]


def load_stage_records(store: Store, record: Mapping[str, Any]) -> dict[str, StageRecord]:
    """Return the stages of a sweep by key, in the order in which its cells name them.

    Nothing is verified: a manifest that cannot be read makes an entry without cost that says so.

    Args:
        store: where the manifests are.
        record: the record of the sweep. Its ``stages`` and ``predicted``, if it has them, name kinds and predictions.
    """
    uses = Counter(key for cell in record["cells"] for key in set(cell["keys"].values()) if key is not None)
    parts = {key: part for cell in record["cells"] for part, key in cell["keys"].items() if key is not None}
    folders = store.layout.folders_by_key()
    planned = record.get("stages", {})
    predicted = record.get("predicted", {})
    ledger = {}
    for key, part in parts.items():
        folder = folders.get(key)
        told = planned.get(key, {})
        kind = folder.parent.name if folder else _kind(part, told)
        traits = told if "trains" in told else traits_of(kind)
        settings = traits["settings"]
        spec = {} if settings is None else _json(store.layout.spec(key))
        manifest = _json(folder / MANIFEST) if folder else {}
        facts = manifest.get("facts", {})
        uncounted = folder is not None and kind == "generate" and "prompts" in facts and "cut" not in facts
        ledger[key] = StageRecord(
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
            settings=settings if settings is None or traits is told else settings_in(settings, spec),
            perhaps_cut=perhaps_cut(folder, _json(store.layout.spec(key))) if folder and uncounted else 0,
            # A link that leads nowhere or a folder is one as well.
            damaged=folder is not None and "seconds" not in manifest and os.path.lexists(folder / MANIFEST),
        )
    return ledger


def trained_in(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of every training stage of a sweep by key, cell by cell in the order of the chain."""
    planned = record.get("stages", {})
    trained = {}
    for cell in record["cells"]:
        for part, key in cell["keys"].items():
            told = planned.get(key, {})
            kind = _kind(part, told)
            if key is not None and (told if "trains" in told else traits_of(kind))["trains"]:
                trained[key] = kind
    return trained


def _kind(part: str, told: Mapping[str, Any]) -> str:
    return str(told.get("kind") or KINDS.get(part, "grade"))


def _json(path: Path) -> dict[str, Any]:
    try:
        read = read_json(path)
    except UnreadableFile:
        return {}
    return read if isinstance(read, dict) else {}
