"""One W&B run as plain data, a function of the store's contents only."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.engine.identity import key_of
from harness.tracking.jsonl import STEP, read_curve

DIGEST = "digest"
"""Field of a run's config and summary with the digest of its contents; uploaded last, just before the run finishes."""
WITH_ADAPTER = "+adapter"
"""Suffix of the digest of a run with its adapter as an artifact: such a run also has all contents of one without."""
LEVELS = 4
"""Maximum nesting of a config: W&B's tables and filters support no more."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A W&B artifact.

    Attributes:
        name: name of the artifact.
        kind: type of the artifact.
        files: a folder, or one file.
        metadata: metadata of the artifact.
    """

    name: str
    kind: str
    files: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of generations.

    Attributes:
        columns: names of the columns.
        lines: the values, row by row.
    """

    columns: tuple[str, ...]
    lines: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One W&B run.

    Attributes:
        id: the key of a stage, or the id of a cell of a sweep.
        name: display name.
        kind: job type.
        group: the sweep.
        tags: the sweeps that contain it.
        config: settings, nested at most ``LEVELS`` deep.
        summary: results.
        curve: file of JSON lines with a ``step``; None for a run without a curve.
        headline: the single row, at step 0, of a run without a curve.
        uses: input artifacts.
        makes: output artifact.
        sheet: table of generations.
    """

    id: str
    name: str
    kind: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    curve: Path | None = None
    headline: Mapping[str, float] = field(default_factory=dict)
    uses: tuple[Artifact, ...] = ()
    makes: Artifact | None = None
    sheet: Table | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of all contents except files, whose contents the id determines; the suffix states their presence."""
        shown = {name: value for name, value in asdict(self).items() if name not in ("curve", "uses", "makes")}
        return key_of(shown) + (WITH_ADAPTER if self.makes is not None else "")

    def rows(self, *, after: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of the curve after a step; of rows with the same step, only the first."""
        if self.headline and after < 0:
            yield {STEP: 0, **self.headline}
        for row in read_curve(self.curve) if self.curve is not None else ():
            if row[STEP] > after:
                after = row[STEP]
                yield {name: value for name, value in row.items() if name not in ("key", "kind")}


def nested(flat: Mapping[str, Any], *, levels: int = LEVELS) -> dict[str, Any]:
    """Return values by dotted name as nested mappings; below the last level, dots are replaced by ``_``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".", levels - 1)
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if isinstance(node, dict) and not isinstance(node.get(last.replace(".", "_")), dict):
            node[last.replace(".", "_")] = value
        else:
            # A value has the same name as a group of values.
            tree[name.replace(".", "_")] = value
    return tree


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without None, infinities and NaN, which JSON cannot represent."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
