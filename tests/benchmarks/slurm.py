"""What Slurm costs: `python tests/benchmarks/slurm.py [submit] [status] [overhead] [pack]`; all of them by default.

Needs a Slurm that may be used for it (`make slurm-up`), except `status`. Each part works in a store of its own, in a
temporary folder, and ends what it submitted.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from harness.engine.stage import lineage
from harness.engine.store import Store
from harness.slurm.job_log import JobEntry, JobLog

QUICK = (
    "model.source.steps=250",
    "align.rows=24",
    "align.budget.epochs=1",
    "finetune.rows=40",
    "finetune.budget.epochs=1",
    "evaluation.rows=12",
    "task.test_rows=10",
)
CELLS = (
    "-m",
    "experiment=tiny",
    "defense=booster",
    "defense.align.lamb=1,2,3,4,5",
    "defense.align.alpha=0.01,0.02,0.05,0.1",
    "attack_ratio=p00,p05,p10,p20",
    "seed=range(5)",
    "cluster=slurm",
)
STAGES = 10_000
PAIRS = 5


def harness(store: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "harness", *arguments]
    environment = {**os.environ, "HARNESS_STORE": str(store), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def seconds(*command: str, store: Path) -> float:
    start = time.perf_counter()
    harness(store, *command)
    return time.perf_counter() - start


def wait(store: Path) -> None:
    while not json.loads(harness(store, "status", "--json"))["over"]:
        time.sleep(2)


def submit(store: Path) -> None:
    """How long 400 cells take to submit, beside as many bare calls of sbatch."""
    start = time.perf_counter()
    # Held, or the first jobs would take the cores from the submission that is measured.
    told = harness(store, *CELLS, "cluster.sbatch=[hold]")
    whole = time.perf_counter() - start
    calls = int(re.search(r"(\d+) calls of sbatch", told)[1])
    planning = seconds("plan", *CELLS, store=store)
    script = store / "nothing.sh"
    script.write_text("#!/bin/sh\n")
    bare = []
    for _ in range(20):
        start = time.perf_counter()
        subprocess.run(["sbatch", "--hold", "--output=/dev/null", str(script)], check=True, capture_output=True)
        bare.append(time.perf_counter() - start)
    harness(store, "cancel", json.loads(harness(store, "plan", *CELLS, "--json"))["sweep"])
    subprocess.run(["scancel", "--name", "nothing.sh"], check=True)
    ratio = whole / (calls * statistics.median(bare))
    print(f"submit 400 cells   {whole:.1f} s, of which planning {planning:.1f} s; {calls} calls of sbatch,")
    print(f"                   one for each kind and set of parents; {ratio:.2f} x the bare calls")


def status(store: Path) -> None:
    """How long the status of 10,000 stages takes, beside starting Python with the same imports."""
    made = Store(store)
    made.prepare()
    keys = [f"{number:016x}" for number in range(STAGES)]
    parents = [keys[place - 1 : place] if place % 4 else [] for place in range(STAGES)]
    stages = {key: {"kind": "finetune", "parents": above} for key, above in zip(keys, parents, strict=True)}
    made.write_sweep("big-00000000", {"id": "big-00000000", "cells": [], "place": {}, "stages": stages})
    for key in keys[: STAGES // 2]:
        folder = store / "artifacts" / "finetune" / key
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"key": key, "kind": "finetune", "files": {}, "seconds": 1.0}))
    ledger = JobLog(store)
    jobs = [JobEntry(job=f"99999999_{number}", keys=(key,), user="root") for number, key in enumerate(keys)]
    ledger.write(ledger.open("big-00000000"), jobs)
    times = [seconds("status", store=store) for _ in range(5)]
    empty = [seconds("status", "--help", store=store) for _ in range(5)]
    found, least = statistics.median(times), statistics.median(empty)
    print(f"status             {found:.2f} s for {STAGES} stages, {found / least:.1f} x its --help")


def overhead(store: Path) -> None:
    """What a job adds to a stage, from the first line of its script to the manifest, beside the same stage by hand."""
    harness(store, "experiment=tiny", *QUICK)
    (key,) = (path.name for path in store.glob("artifacts/finetune/*"))
    in_job, by_hand, imports = [], [], []
    for pair in range(PAIRS + 1):
        # Nothing else is left to run, so that nothing runs beside it.
        for path in list(store.glob("artifacts/*/*")):
            if any(stage.key == key for stage in lineage((Store(store).stage(path.name),))):
                shutil.rmtree(path)
        begun = store / f"begun-{pair}"
        harness(store, "experiment=tiny", "cluster=slurm", f"cluster.setup=['date +%s.%N > {begun}']", *QUICK)
        wait(store)
        in_job.append(finished(store, key) - float(begun.read_text()))
        shutil.rmtree(store / "artifacts" / "finetune" / key)
        begin = time.time()
        harness(store, "stage", key)
        by_hand.append(finished(store, key) - begin)
        imports.append(python("import submitit.core._submit") - python(""))
    # The first pair warms up.
    added = [job - hand for job, hand in zip(in_job, by_hand, strict=True)][1:]
    hand, job = statistics.median(by_hand[1:]), statistics.median(in_job[1:])
    print(f"one fine-tuning    {hand:.2f} s by hand, {job:.2f} s in a job:")
    print(f"                   {statistics.median(added):+.2f} s ({min(added):+.2f} to {max(added):+.2f}), of which")
    print(f"                   {statistics.median(imports):.2f} s to import submitit")


def python(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def pack(store: Path) -> None:
    """CPU seconds of eight fine-tunings in one job, beside eight jobs."""
    totals = {}
    ratios = ",".join(f"0.{number:02d}" for number in range(1, 9))
    for size in (1, 8):
        here = store.with_name(f"store-{size}")
        asked = f"cluster.resources.finetune.pack={size}"
        harness(here, "-m", "experiment=tiny", f"attack.ratio={ratios}", "cluster=slurm", asked, *QUICK)
        wait(here)
        made = Store(here)
        jobs = {entry.job for entry in JobLog(here).entries() if made.stage(entry.keys[0]).name == "finetune"}
        totals[size] = accounted(jobs)
        print(f"pack {size}             {totals[size]:.1f} CPU seconds in {len(jobs)} jobs")
    print(f"ratio              {totals[1] / totals[8]:.2f}")


def accounted(jobs: Collection[str]) -> float:
    """Return the CPU seconds of jobs that have ended; the accounting hears of their ends a little later."""
    query = ["sacct", "--noheader", "--parsable2", "--format", "JobID,State,TotalCPU", "--jobs", ",".join(jobs)]
    while True:
        text = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        steps = [row.split("|") for row in text.splitlines() if row.split("|")[0].endswith(".0")]
        if failed := [name for name, state, _ in steps if state not in ("RUNNING", "COMPLETED")]:
            raise SystemExit(f"{', '.join(failed)} did not succeed")
        if sum(state == "COMPLETED" for _, state, _ in steps) == len(jobs):
            return sum(cpu(spent) for *_, spent in steps)
        time.sleep(1)


def finished(store: Path, key: str) -> float:
    return datetime.fromisoformat(Store(store).manifest(key).provenance["finished"]).timestamp()


def cpu(text: str) -> float:
    """Read `1:02.345` or `1:02:03`."""
    return sum(float(part) * 60**place for place, part in enumerate(reversed(text.split(":"))))


def main() -> None:
    """Measure and print."""
    parts = {"submit": submit, "status": status, "overhead": overhead, "pack": pack}
    for name in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            parts[name](Path(folder) / "store")


if __name__ == "__main__":
    main()
