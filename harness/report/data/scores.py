"""Reads stored grades: the summary of each grading and its verdict on each prompt, verified against the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engine.files import read_bytes
from harness.engine.layout import MANIFEST
from harness.engine.manifest import FileRecord, Manifest, damaged_artifact
from harness.engine.store import Store
from harness.errors import DamagedArtifact, UnreadableFile
from harness.stages.grade import GRADES, SUMMARY

if TYPE_CHECKING:
    from numpy.typing import NDArray

READERS = 2
"""Number of threads; hashing and parsing of large files release the GIL."""


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One stored grading.

    Attributes:
        summary: score, counts and categories; empty if the grading is not stored or is damaged.
        trouble: why a stored grading cannot be used; empty if it can.
        values: ``[prompts]``, 1 for harmful, correct or refusing, 0 otherwise, with a graded judge also values between;
            NaN if the generation could not be judged; None if the store has no verdicts per prompt.
        plus: the same under the coherence rule, which counts incoherent generations as harmful.
    """

    summary: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    values: NDArray[Any] | None = None
    plus: NDArray[Any] | None = None

    def of(self, score: str) -> NDArray[Any] | None:
        """Return the verdicts behind a column of scores."""
        return self.plus if score.endswith("_plus") else self.values


def read_grades(store: Store, keys: Iterable[str]) -> dict[str, Graded]:
    """Return the gradings by key; those that are not stored or are damaged have no summary and no values."""
    distinct = list(dict.fromkeys(keys))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(distinct, pool.map(lambda key: _read(store, key), distinct), strict=True))


def _read(store: Store, key: str) -> Graded:
    folder = store.layout.artifact("grade", key)
    if not (folder / MANIFEST).exists():
        return Graded()
    try:
        files = {name: _read_verified(folder, name, record) for name, record in Manifest.read(folder).files.items()}
        summary = _summary(folder, files)
    except DamagedArtifact as error:
        return Graded(trouble=str(error))
    verdicts = files.get(GRADES)
    if verdicts is None:
        return Graded(summary=summary)
    values, plus = _verdicts(verdicts)
    return Graded(summary=summary, values=values, plus=plus)


def _read_verified(folder: Path, name: str, expected: FileRecord) -> bytes:
    try:
        content = read_bytes(folder / name)
    except UnreadableFile as error:
        raise damaged_artifact(folder, f"`{name}` cannot be read ({error})") from None
    if len(content) != expected.size:
        raise damaged_artifact(folder, f"`{name}` has {len(content)} bytes; expected {expected.size}")
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise damaged_artifact(folder, f"`{name}` was altered: its sha256 is not that of the manifest")
    return content


def _summary(folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(files[SUMMARY])
    except (KeyError, ValueError):
        raise damaged_artifact(folder, f"it has no readable `{SUMMARY}`") from None
    if not {"count", "unjudged", "score"} <= summary.keys():
        raise damaged_artifact(folder, f"`{SUMMARY}` is not the summary of a grading")
    return summary


def _verdicts(content: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Parse only the fields that are averaged: most of a file is the probabilities of 14 categories."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import json as lines

    table = lines.read_json(
        pa.BufferReader(content),
        read_options=lines.ReadOptions(use_threads=False, block_size=max(len(content), 1)),
        parse_options=lines.ParseOptions(
            explicit_schema=pa.schema([("value", pa.float64()), ("incoherent", pa.bool_()), ("plus", pa.float64())]),
            unexpected_field_behavior="ignore",
        ),
    )
    values = table["value"].to_numpy()
    broken = table["incoherent"].to_numpy().astype("float64")
    # Stored for several samples of a prompt, whose mean under the rule does not follow from the two means.
    stored = table["plus"].to_numpy()
    return values, np.where(np.isnan(stored), np.maximum(values, broken), stored)
