"""A curve in the store: how it is written, and what is read of it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_sweep import STEPS

from harness.engine.layout import StoreLayout
from harness.tracking.jsonl import CURVE, METRICS, Jsonl, curve_of
from harness.tracking.wandb import Wandb
from harness.wandb_sync.run import RunRecord


def _line(step):
    return json.dumps({"key": "k", "kind": "align", "step": step}) + "\n"


def _steps(curve, after=-1):
    entry = RunRecord(id="k", name="", kind="align", group="", tags=(), config={}, curve=curve)
    return [row["step"] for row in entry.rows(after=after)]


def test_stage_keeps_its_curve_in_the_store(tmp_path):
    tracker = Wandb().open(key="k", kind="align", work=tmp_path)
    tracker.log({"loss": 1.5}, step=STEPS)
    tracker.close()

    assert json.loads((tmp_path / "curve.jsonl").read_text()) == {
        "key": "k",
        "kind": "align",
        "step": STEPS,
        "loss": 1.5,
    }


def test_curve_shows_a_repeated_step_once_and_no_half_written_line(tmp_path):
    curve = tmp_path / "curve.jsonl"
    curve.write_text("".join(map(_line, [1, 2, 3, 2, 3, 4])) + '{"st')

    assert _steps(curve) == [1, 2, 3, 4]
    assert _steps(curve, after=3) == [4]


def test_line_that_cannot_be_read_is_passed_over(tmp_path):
    curve = tmp_path / "curve.jsonl"
    strange = b"[1]\n7\n\n{}\n" + bytes(9) + b"\n\xff\xfe\n"
    curve.write_bytes(_line(1).encode() + b'{"key": "k", "st' + _line(2).encode() + strange + _line(3).encode())

    assert _steps(curve) == [1, 3]


def test_attempt_after_one_that_was_killed_in_a_line_loses_none_of_its_own(tmp_path):
    curve = tmp_path / "curve.jsonl"
    curve.write_text(_line(1) + '{"key": "k", "st')

    for step in (2, 3):
        tracker = Jsonl().open(key="k", kind="align", work=tmp_path)
        tracker.log({}, step=step)
        tracker.close()

    assert _steps(curve) == [1, 2, 3]


def test_curve_on_a_full_disk_fails_no_stage(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("harness"), "propagate", True)
    (tmp_path / "curve.jsonl").symlink_to(Path("/dev/full"))
    tracker = Jsonl().open(key="k", kind="align", work=tmp_path)

    tracker.log({"loss": 1.5}, step=1)
    tracker.close()

    # Another test of the process may have left the handler on a logger below as well.
    assert len({record.message for record in caplog.records}) == 2


@pytest.mark.slow
def test_stage_does_not_speak_of_wandb_and_leaves_its_mode_to_whom_it_concerns():
    command = "import os, harness.training.trainer; print(os.environ['WANDB_MODE'])"

    ran = subprocess.run(
        [sys.executable, "-c", command], env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert ran.stdout == "offline\n"


def test_curve_of_a_stage_is_the_stored_one_and_otherwise_that_of_its_attempt(tmp_path):
    layout = StoreLayout(tmp_path)
    attempt = layout.work("0123456789abcdef") / CURVE
    stored = layout.artifact("align", "0123456789abcdef") / METRICS
    for path in (attempt, stored):
        path.parent.mkdir(parents=True)
    attempt.touch()

    before = curve_of(layout, "align", "0123456789abcdef")
    stored.touch()
    after = curve_of(layout, "align", "0123456789abcdef")

    assert (before, after) == (attempt, stored)
