"""A stage that four processes on two nodes share."""

import json
import os
import sys
from pathlib import Path

import pytest
from crowd import is_gone
from faults import ask, ended, wait_until

HERE = Path(__file__).parent
SCRIPT = '#!/bin/sh\nexec srun --nodes=1 --ntasks=1 "$@"\n'


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Submit a job over two nodes, in which what goes wrong in which rank is told by name; return its id."""
    paths = [HERE.parents[1], HERE.parent / "engine"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "job.sh").write_text(SCRIPT)
    (tmp_path / "store").mkdir()

    def submitted(**trouble):
        for rank, what in trouble.items():
            (tmp_path / "store" / rank.replace("rank", "trouble-")).write_text(what)
        wishes = ["--nodes=2", "--ntasks-per-node=1", "--mem=0", f"--output={tmp_path / 'log.txt'}"]
        work = [str(tmp_path / "job.sh"), sys.executable, str(HERE / "on_two_nodes.py"), str(tmp_path / "store")]
        return ask("sbatch", "--parsable", *wishes, *work)

    return submitted


def told(tmp_path):
    return json.loads((tmp_path / "store" / "result.json").read_text())


def test_stage_on_two_nodes_is_run_by_four_ranks(submit, tmp_path):
    job = submit()

    assert ended(job, 120).state == "COMPLETED"
    assert told(tmp_path)["outcome"] == "executed"
    (manifest,) = (json.loads(path.read_text()) for path in (tmp_path / "store").glob("artifacts/*/*/manifest.json"))
    assert {name: manifest["provenance"][name] for name in ("processes", "nodes")} == {"processes": 4, "nodes": 2}
    assert len(list((tmp_path / "store").glob("pid-*"))) == 4


def test_mistake_on_the_other_node_is_the_users_to_mend(submit, tmp_path):
    job = submit(rank0="hold", rank3="data")

    assert ended(job, 120).state == "COMPLETED"
    result = told(tmp_path)
    assert (result["outcome"], result["cause"], result["trace"]) == ("failed", "DataError", "")


def test_signal_to_every_process_of_a_job_stops_all_ranks(submit, tmp_path):
    job = submit(rank0="hold", rank3="hold")
    wait_until(lambda: all((tmp_path / "store" / f"holding-{rank}").exists() for rank in (0, 3)), 120)

    ask("scancel", "--signal=USR2", job)

    assert ended(job, 120).state == "COMPLETED"
    assert told(tmp_path)["outcome"] == "stopped"


def test_job_that_is_cancelled_leaves_no_rank(submit, tmp_path):
    job = submit(rank0="hold", rank3="hold")
    wait_until(lambda: all((tmp_path / "store" / f"holding-{rank}").exists() for rank in (0, 3)), 120)

    ask("scancel", job)

    assert ended(job, 120).state == "CANCELLED"
    pids = [int(path.read_text()) for path in (tmp_path / "store").glob("pid-*")]
    wait_until(lambda: all(is_gone(pid) for pid in pids))
