"""Several sweeps of a store as one: seeds or defenses that were run later belong into the same table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.engine.cells import CellIdentity
from harness.errors import ConfigError


def joined_record(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the record of all cells of several sweeps; a cell that several of them have is there once.

    Args:
        records: the records of the sweeps, at least one. A single one is returned as it is.

    Raises:
        ConfigError: the sweeps declare different attackers, whose trials cannot be compared.
    """
    first, *others = records
    if not others:
        return first
    names = [str(record["id"]) for record in records]
    for name, other in zip(names[1:], others, strict=True):
        if other.get("attacker") != first.get("attacker"):
            raise ConfigError(
                [f"`{names[0]}` and `{name}` do not declare the same `attacker`: report them one at a time"]
            )
    cells: dict[CellIdentity, Any] = {}
    for record in records:
        for cell in record["cells"]:
            cells.setdefault(CellIdentity.of(cell), cell)
    return {
        **first,
        "id": " + ".join(names),
        "title": " + ".join(dict.fromkeys(str(record.get("title") or record["id"]) for record in records)),
        "commands": [command for record in records for command in commands_of(record)],
        "cells": list(cells.values()),
        "stages": _merged(records, "stages"),
        "predicted": _merged(records, "predicted"),
    }


def commands_of(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the command lines, as lists of words, of the sweeps that a record is joined from; none if unknown."""
    return list(record.get("commands", [record["argv"]] if record.get("argv") else []))


def _merged(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {key: found for record in records for key, found in record.get(name, {}).items()}
