import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_runs import Recorder, build, run, trainables

from harness.training import step_trainer
from harness.training.checkpoint import MARKER, STATE, complete, discarded, resumable

ROOT = Path(__file__).parents[2]


def steps_in(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


class InterruptAt(Recorder):
    """A tracker that ends the run when it hears of a step, before the step's checkpoint is written."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def log(self, metrics, *, step):
        if step == self._step:
            raise KeyboardInterrupt


def with_dropout():
    model = build()
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work = tmp_path_factory.mktemp("trained")
    run("booster", work, checkpoint_every_steps=1)
    return work


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints"


def newest(folder):
    return resumable(folder, torch.device("cpu"))


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)


def test_checkpoints_are_kept_two_at_most(folder):
    assert steps_in(folder) == [3, 4]
    assert newest(folder) == folder / "checkpoint-4"
    assert discarded(folder.parent) == []


def test_checkpoint_that_a_killed_process_left_half_written_is_discarded_and_is_nothing_unusual(folder):
    (folder / "checkpoint-4" / MARKER).unlink()
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-6").touch()
    (folder / "checkpoint-7.marker").touch()

    assert newest(folder) == folder / "checkpoint-3"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-7.marker"]
    assert discarded(folder.parent) == []


FILES = ("method.pt", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


@pytest.mark.parametrize("name", [*FILES, MARKER])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip_a_bit(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["bit", "half", "empty", "zeros", "folder", "endless", "pipe"],
)
def test_checkpoint_that_is_not_what_its_marker_says_is_discarded_and_told(folder, caplog, name, damage):
    damage(folder / "checkpoint-4" / name)

    assert newest(folder) == folder / "checkpoint-3"
    assert steps_in(folder) == [3]
    (told,) = discarded(folder.parent)
    assert told["step"] == 4
    assert name in told["problem"]
    assert told["problem"] in caplog.text
    assert newest(folder) == folder / "checkpoint-3"
    assert len(discarded(folder.parent)) == 1


@pytest.mark.parametrize("marker", ["{}", "[]", "null", '{"method.pt": 1517}', '{"method.pt": {"size": 1517}}'])
def test_checkpoint_whose_marker_tells_no_checksums_is_discarded(folder, marker):
    """The fourth is what earlier versions wrote: sizes alone."""
    (folder / "checkpoint-4" / MARKER).write_text(marker)

    assert newest(folder) == folder / "checkpoint-3"


def test_checkpoint_that_misses_a_file_is_discarded_beside_a_newer_one(folder):
    (folder / "checkpoint-3" / "model.safetensors").unlink()

    assert newest(folder) == folder / "checkpoint-4"
    assert steps_in(folder) == [4]


@pytest.mark.slow
def test_run_whose_newest_checkpoint_is_damaged_ends_as_an_undisturbed_one(tmp_path):
    """The defect: numbers that are still plausible, so that nothing fails and the result is another."""
    whole, killed, resumed = build("booster"), build("booster"), build("booster")
    expected = run("booster", tmp_path / "whole", model=whole)
    with pytest.raises(KeyboardInterrupt):
        run("booster", tmp_path / "killed", model=killed, tracker=InterruptAt(4), checkpoint_every_steps=1)
    weights = tmp_path / "killed" / "checkpoints" / "checkpoint-3" / "model.safetensors"
    for place in range(weights.stat().st_size - 400, weights.stat().st_size, 4):
        flip_a_bit(weights, place)

    report = run("booster", tmp_path / "killed", model=resumed)

    assert report == expected
    assert all(torch.equal(trainables(resumed)[name], weight) for name, weight in trainables(whole).items())
    assert [each["step"] for each in discarded(tmp_path / "killed")] == [3]


def test_marker_is_forced_to_disk_after_everything_that_it_lists(folder, monkeypatch):
    checkpoint = folder / "checkpoint-4"
    (checkpoint / MARKER).unlink()
    order, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append("rename"), replace(source, target)))

    complete(checkpoint)

    renamed = order.index("rename")
    files = {checkpoint / name for name in FILES}
    assert files <= set(order[:renamed])
    assert files.isdisjoint(order[order.index(checkpoint) :])
    assert order[renamed - 1].name.startswith(f".{MARKER}")
    assert order[renamed + 1 :] == [checkpoint, folder]


def test_checkpoint_marker_lists_everything_a_resumed_run_needs(folder):
    listed = json.loads((folder / "checkpoint-4" / MARKER).read_text())

    assert set(listed) == set(FILES)
    assert listed[STATE] == {
        "size": (folder / "checkpoint-4" / STATE).stat().st_size,
        "sha256": hashlib.sha256((folder / "checkpoint-4" / STATE).read_bytes()).hexdigest(),
    }


@pytest.mark.slow
def test_checkpoints_come_by_time(tmp_path):
    run("sft", tmp_path / "often", checkpoint_every_seconds=0)
    run("sft", tmp_path / "never", checkpoint_every_seconds=3600)

    assert steps_in(tmp_path / "often" / "checkpoints") == [3, 4]
    assert steps_in(tmp_path / "never" / "checkpoints") == []


@pytest.mark.slow
def test_finished_run_that_is_resumed_trains_no_further(tmp_path):
    first, again, tracker = build(), build(), Recorder()
    expected = run("sft", tmp_path, model=first, checkpoint_every_steps=1)

    report = run("sft", tmp_path, model=again, checkpoint_every_steps=1, tracker=tracker)

    assert report == expected
    assert tracker.rows == []
    assert all(torch.equal(trainables(again)[name], weight) for name, weight in trainables(first).items())


@pytest.mark.slow
def test_run_resumed_in_the_middle_of_a_logging_interval_logs_the_same_means(tmp_path, monkeypatch):
    monkeypatch.setattr(step_trainer, "ROWS_OF_HISTORY", 2)
    expected = run("booster", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run("booster", tmp_path / "killed", tracker=InterruptAt(4), checkpoint_every_steps=3)

    report = run("booster", tmp_path / "killed")

    assert [row["step"] for row in report.history] == [2, 4]
    assert report == expected


@pytest.mark.slow
def test_run_with_dropout_resumes_bitwise(tmp_path):
    whole, killed, resumed = (with_dropout() for _ in range(3))
    run("sft", tmp_path / "whole", model=whole)
    with pytest.raises(KeyboardInterrupt):
        run("sft", tmp_path / "killed", model=killed, tracker=InterruptAt(3), checkpoint_every_steps=1)

    run("sft", tmp_path / "killed", model=resumed)

    assert all(torch.equal(trainables(resumed)[name], weight) for name, weight in trainables(whole).items())


@pytest.mark.slow
def test_process_killed_while_it_writes_a_checkpoint_leaves_one_to_resume_from(tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import torch
from golden_runs import run
write = torch.save
def save(content, path, *rest, **options):
    if str(path).endswith("checkpoint-3/method.pt"):
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(content, path, *rest, **options)
torch.save = save
run("booster", Path({str(tmp_path / "killed")!r}), checkpoint_every_steps=1)
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False, env=os.environ)
    assert ended.returncode == -signal.SIGKILL
    whole, resumed = build("booster"), build("booster")
    assert newest(tmp_path / "killed" / "checkpoints").name == "checkpoint-2"

    run("booster", tmp_path / "killed", model=resumed)

    run("booster", tmp_path / "whole", model=whole)
    assert all(torch.equal(trainables(resumed)[name], weight) for name, weight in trainables(whole).items())
