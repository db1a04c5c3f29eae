"""What the user sees of a sweep that waits: for what, since when, and what would let it go on."""

import json
from datetime import UTC, datetime, timedelta

from harness.cli.status import print_status
from harness.execution.state import SWEEP_STATES, StageStatus
from harness.sweep.status import Status


def standing(capsys, *states: StageStatus, strays=(), damage=(), as_json=False) -> str:
    counts = {what: sum(state.what == what for state in states) for what in SWEEP_STATES}
    print_status(
        Status(
            sweep="tiny-1",
            counts={"align": counts},
            states={f"{number:016x}": state for number, state in enumerate(states)},
            seconds_left=None,
            cancelled=False,
            strays=strays,
            damage=damage,
        ),
        as_json=as_json,
    )
    return capsys.readouterr().out


def ago(**time):
    return (datetime.now(UTC) - timedelta(**time)).isoformat(timespec="milliseconds")


def pending(job, reason, **time):
    return StageStatus(kind="align", what="pending", job=job, reason=reason, submitted=ago(**time))


def test_waiting_jobs_are_told_by_reason_with_the_time_of_the_oldest(capsys):
    told = standing(
        capsys,
        pending("1", "Priority", minutes=5),
        pending("1", "Priority", minutes=5),
        pending("2", "Priority", hours=26),
        pending("3", "Dependency", minutes=-3),
    )

    assert "pending: 3 stages in 2 jobs, Priority, submitted 1 day, 2:00:0" in told
    assert "pending: 1 stage in 1 job, Dependency, submitted 0:00:00 ago" in told, "of a clock that is ahead"
    assert "held" not in told


def test_held_jobs_are_told_once_each_with_what_frees_them(capsys):
    held = {"kind": "align", "what": "held", "submitted": ago(minutes=5), "held_by": "7"}

    told = standing(
        capsys,
        StageStatus(**held, job="7", reason="launch failed requeued held"),
        StageStatus(**held, job="8", reason="Dependency"),
        StageStatus(**{**held, "held_by": "9"}, job="9", reason="JobHeldUser"),
    )

    assert "held by Slurm: job 7, launch failed requeued held, 2 stages" in told
    assert "held by Slurm: job 9, JobHeldUser, 1 stage" in told
    assert told.count("`scontrol release 7`") == told.count("`scontrol release 9`") == 1


def test_rare_states_have_a_column_only_where_they_are_met(capsys):
    plain = standing(capsys, StageStatus(kind="align", what="stored"))
    rare = standing(capsys, StageStatus(kind="align", what="unneeded"))

    assert "unneeded" not in plain
    assert "held" not in plain
    assert "unneeded" in rare


def test_strays_and_damage_are_told(capsys):
    told = standing(
        capsys, StageStatus(kind="align", what="stored"), strays=["12"], damage=["Line 3 of `x` is damaged"]
    )

    assert "1 job in the queue that no job log lists (12)" in told
    assert "Line 3 of `x` is damaged" in told


def test_program_is_told_everything(capsys):
    state = StageStatus(kind="align", what="held", job="7", reason="JobHeldUser", held_by="7", submitted="2026")

    told = json.loads(standing(capsys, state, strays=["12"], damage=["x"], as_json=True))

    assert (told["strays"], told["damage"]) == (["12"], ["x"])
    assert told["stages"]["0" * 16]["held_by"] == "7"
    assert told["counts"]["align"]["held"] == 1
