"""An entry: one W&B run as plain data, made from the store alone. The same store gives the same entry."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.engine.identity import key_of
from harness.tracking.jsonl import STEP, read_curve

DIGEST = "digest"
"""The name in a run's config and summary that says which entry it shows. Both are sent last of all but the end."""
WITH_ADAPTER = "+adapter"
"""How a digest ends if the run has its adapter as an artifact: it shows what a run without one does, and more."""
LEVELS = 4
"""How deep a config may be nested: W&B's tables and filters reach no further."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Files that W&B keeps as an artifact.

    Attributes:
        name: of the artifact.
        kind: its type.
        files: a folder, or one file.
        metadata: for the reader.
    """

    name: str
    kind: str
    files: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of answers.

    Attributes:
        columns: their names.
        lines: the cells.
    """

    columns: tuple[str, ...]
    lines: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One W&B run.

    Attributes:
        id: the key of a stage, or of a cell of a sweep.
        name: for the reader.
        kind: the job type.
        group: the sweep.
        tags: the sweeps it belongs to.
        config: what it was made with, nested at most ``LEVELS`` deep.
        summary: what came out.
        curve: JSON lines with a ``step``; None for a run without a curve.
        headline: the one row, at step 0, of a run without a curve.
        uses: artifacts it started from.
        makes: the artifact it ends with.
        sheet: answers to be shown.
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
    sheet: Sheet | None = None

    @cached_property
    def digest(self) -> str:
        """The hash of everything that is shown, but for files: the id names their content, the end whether they are."""
        shown = {name: value for name, value in asdict(self).items() if name not in ("curve", "uses", "makes")}
        return key_of(shown) + (WITH_ADAPTER if self.makes is not None else "")

    def rows(self, *, after: int) -> Iterator[dict[str, Any]]:
        """Return the rows of the curve whose step is later; a step that was made twice is shown once."""
        if self.headline and after < 0:
            yield {STEP: 0, **self.headline}
        for row in read_curve(self.curve) if self.curve is not None else ():
            if row[STEP] > after:
                after = row[STEP]
                yield {name: value for name, value in row.items() if name not in ("key", "kind")}


def nested(flat: Mapping[str, Any], *, levels: int = LEVELS) -> dict[str, Any]:
    """Return values by dotted name as nested mappings; what lies deeper than the levels keeps its dots as ``_``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *heads, last = name.split(".", levels - 1)
        place: Any = tree
        for head in heads:
            place = place.setdefault(head, {}) if isinstance(place, dict) else None
        if isinstance(place, dict) and not isinstance(place.get(last.replace(".", "_")), dict):
            place[last.replace(".", "_")] = value
        else:
            # A value and a group of values have the same name.
            tree[name.replace(".", "_")] = value
    return tree


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can be shown: no missing values, and no numbers that JSON lacks."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
