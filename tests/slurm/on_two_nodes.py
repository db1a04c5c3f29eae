"""The script of a Slurm job over two nodes: one attempt of the toy that several processes share."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Event

from crowd import Crowd
from toys import ALLOW

from harness.engine.claim import Claims
from harness.engine.store import Store
from harness.execution.attempt import WorkerContext, attempt
from harness.execution.ranks import Processes
from harness.tracking.jsonl import Jsonl

if __name__ == "__main__":
    store = Store(Path(sys.argv[1]), allow=(*ALLOW, "crowd."))
    store.prepare()
    stop = Event()
    signal.signal(signal.SIGUSR2, lambda *_: stop.set())
    context = WorkerContext(
        store=store,
        claims=Claims(store.claims),
        tracker=Jsonl(),
        processes={"crowd": Processes(count=2, nodes=2)},
        stop=stop.is_set,
    )
    (store.root / "result.json").write_text(json.dumps(asdict(attempt(Crowd(), context))))
