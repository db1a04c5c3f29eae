"""Fidelity: how far each defense of a sweep is known to be the published one, as the header of its module states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.engine.build import TARGET
from harness.engine.classes import paths_of
from harness.engine.external import external_paths
from harness.engine.statement import statement_in

if TYPE_CHECKING:
    from harness.report.data.stage_records import StageRecord

DEFENSE = "defense/"
"""Kind of the classes that state their fidelity, in their names in stored data."""
NOT_STATED = "not stated."


class Fidelity(NamedTuple):
    """What is known about one method.

    Attributes:
        method: name of the method.
        version: its version.
        statement: grade and evidence, from the header of its module.
    """

    method: str
    version: int
    statement: str


def fidelities(stage_records: Iterable[StageRecord]) -> tuple[Fidelity, ...]:
    """Return the fidelity of every method that acts in these stages, by name; plain training is none."""
    records = list(stage_records)
    names = sorted({name for record in records for name in _targets(record.spec) if name.startswith(DEFENSE)})
    own = [_fidelity(name) for name in names]
    return tuple(dict.fromkeys([*own, *sorted(each for record in records for each in _external(record))]))


def _external(record: StageRecord) -> Iterator[Fidelity]:
    """Yield what a stage's manifest says about its method, if that is of another package: a report imports none."""
    for path in external_paths({TARGET: (record.spec.get("method") or {}).get(TARGET)}):
        found = record.provenance.get("classes", {}).get(path)
        if found is not None:
            yield Fidelity(f"{found['name']} ({path})", found["version"], found["fidelity"] or NOT_STATED)


def _targets(spec: Any) -> Iterator[str]:
    """Return the names of the classes in a spec."""
    if isinstance(spec, Mapping):
        if isinstance(name := spec.get(TARGET), str):
            yield name
        spec = list(spec.values())
    if isinstance(spec, list):
        for each in spec:
            yield from _targets(each)


def _fidelity(name: str) -> Fidelity:
    method, _, version = name.removeprefix(DEFENSE).partition("@")
    if not (paths := paths_of(name)):
        return Fidelity(method, int(version), f"unknown: version {version} is not installed.")
    headers = [import_module(path.rpartition(".")[0]).__doc__ for path in paths]
    stated = filter(None, map(statement_in, headers))
    return Fidelity(method, int(version), next(stated, NOT_STATED))
