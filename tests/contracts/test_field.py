"""The page of the field says what the code has: every member is named once, and every line composes."""

import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml
from composed import compose

from harness.config.shipped import CONF

ROOT = Path(__file__).parents[2]
GROUPS = ("defense/align", "defense/finetune", "defense/repair", "attack", "guardrail", "ensemble", "serve")
SCRIPT = runpy.run_path(str(ROOT / "docs" / "field.py"))
FIELD = yaml.safe_load((ROOT / "docs" / "field.yaml").read_text("utf-8"))
MEMBERS = [
    member
    for part in ("defenses", "attacks")
    for each in FIELD[part]
    for member in (*each.get("options", []), *each.get("lines", []))
]
SWEEPS = {member for member in MEMBERS if member.startswith("+")}
LINES = sorted(SWEEPS | {each["line"] for each in FIELD["iclr_2025"] if "line" in each})
"""What is more than an option of a group, which `test_configs.py` composes."""


def test_page_is_what_the_script_writes():
    assert (ROOT / "docs" / "field.md").read_text("utf-8") == SCRIPT["page"]()


def test_every_member_of_the_house_has_one_place():
    shipped = {f"{group}={path.stem}" for group in GROUPS for path in (Path(CONF) / group).glob("*.yaml")}

    assert set(MEMBERS) - SWEEPS == shipped - {"guardrail=none", "ensemble=none", "serve=none"}
    assert {member: count for member, count in Counter(MEMBERS).items() if count > 1} == {}


@pytest.mark.parametrize("line", LINES)
def test_line_composes(line):
    assert compose(shlex.split(line))


def test_what_is_missing_has_a_reason():
    missing = [
        reason for part in ("defenses", "attacks") for each in FIELD[part] for reason in each.get("absent", {}).values()
    ]

    assert all(missing)
    assert all(("line" in each) != bool(each.get("absent")) for each in FIELD["iclr_2025"])
    assert len(FIELD["iclr_2025"]) == 13
