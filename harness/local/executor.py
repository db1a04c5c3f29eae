"""The local executor: runs a plan on this machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.engine.claim import Claims
from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.engine.tracker import TrackerSettings
from harness.errors import Interrupted
from harness.execution.attempt import AttemptResult, WorkerContext
from harness.execution.executor import Event, Failure, Outcome, ignore_event
from harness.execution.ranks import Processes
from harness.execution.state import EventState
from harness.local.gpus import visible_gpus
from harness.local.ready_queue import ReadyQueue
from harness.local.workers import InProcess, ProcessPool, WorkerConfig, WorkerPool
from harness.tracking.jsonl import Jsonl


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Runs a plan on this machine. A failed stage blocks its descendants; all other stages still run.

    Attributes:
        workers: 1 runs every stage in this process; a larger number spawns that many worker processes.
        gpus: values of ``CUDA_VISIBLE_DEVICES`` for the processes of the workers, assigned round robin; without any,
            each sees what this process sees.
        device: a torch device string.
        tracker: opens the curve of each stage.
        on_event: called in this process with every event of a stage.
        initialize: called once in every process that runs stages, before its first stage; must be picklable if
            processes are spawned.
        processes: number of processes per stage, by kind of stage; 1 for kinds that are not listed.
        poll_seconds: interval between checks of a stage that another process is running.
    """

    workers: int = 1
    gpus: Sequence[str] = ()
    device: str = "cpu"
    tracker: TrackerSettings = field(default_factory=Jsonl)
    on_event: Callable[[Event], None] = ignore_event
    initialize: Callable[[], None] | None = None
    processes: Mapping[str, Processes] = field(default_factory=dict)
    poll_seconds: float = 0.5

    def run(self, plan: Plan, store: Store) -> Outcome:
        """Run the stages of a plan that are not in the store.

        Raises:
            StoreError: the store cannot be written.
            Interrupted: the user pressed Ctrl-C; what was finished is stored.
        """
        pending = plan.pending(store)
        run = _Run(self, plan, store, pending)
        if not pending:
            return run.outcome()
        store.prepare()
        store.register(plan.stages)
        pool = self._create_pool(store)
        try:
            run.execute(pool)
        except KeyboardInterrupt:
            message = f"Stopped. {run.settled} of {len(plan.stages)} stages are settled; run again to continue."
            raise Interrupted(message) from None
        finally:
            pool.stop()
        return run.outcome()

    def _create_pool(self, store: Store) -> WorkerPool:
        # In this process a worker takes the first GPU, whichever is its own.
        elsewhere = bool(self.gpus) and self.gpus[0].partition(",")[0] not in visible_gpus()[:1]
        if self.workers > 1 or elsewhere:
            config = WorkerConfig(
                root=store.root,
                allow=store.allow,
                tracker=self.tracker,
                device=self.device,
                initialize=self.initialize,
                processes=self.processes,
            )
            return ProcessPool(
                [self.gpus[number % len(self.gpus)] if self.gpus else None for number in range(self.workers)], config
            )
        if self.initialize is not None:
            self.initialize()
        context = WorkerContext(
            store=store,
            claims=Claims(store.claims),
            tracker=self.tracker,
            device=self.device,
            processes=self.processes,
            initialize=self.initialize,
        )
        return InProcess(context)


class _Run:
    """The state of one run of a plan."""

    def __init__(self, executor: LocalExecutor, plan: Plan, store: Store, pending: Sequence[Stage]) -> None:
        self._executor = executor
        self._store = store
        self._total = len(plan.stages)
        self._stages = {stage.key: stage for stage in pending}
        self._queue = ReadyQueue(pending)
        self._executed: list[str] = []
        self._in_store: list[str] = []
        self._failed: dict[str, Failure] = {}
        self._blocked: dict[str, str] = {}
        self._waiting: set[str] = set()
        for stage in plan.stages:
            if stage.key not in self._stages and store.has(stage):
                self._in_store.append(stage.key)
                self._emit("stored", stage)

    @property
    def settled(self) -> int:
        """Number of stages that are neither running nor still to be run."""
        return self._total - len(self._queue)

    def outcome(self) -> Outcome:
        return Outcome(
            executed=tuple(self._executed), stored=tuple(self._in_store), failed=self._failed, blocked=self._blocked
        )

    def execute(self, pool: WorkerPool) -> None:
        """Run or skip stages until none is pending."""
        running = 0
        busy: list[str] = []
        while len(self._queue):
            while (assigned := self._queue.next(pool.bases, pool.idle)) is not None:
                stage = assigned.stage
                if self._store.has(stage):
                    self._stored(stage)
                    continue
                if stage.key not in self._waiting:
                    self._emit("running", stage)
                pool.begin(stage, assigned.worker)
                running += 1
            # With nothing ready to start, poll the stages that other processes are running.
            timeout = self._executor.poll_seconds if busy else None
            ended = pool.ended(timeout) if running else []
            running -= len(ended)
            for result in ended:
                if result.outcome == "busy":
                    busy.append(result.key)
                self._settle(result)
            if busy and not ended:
                if not running:
                    time.sleep(self._executor.poll_seconds)
                for key in busy:
                    self._queue.put_back(key)
                busy.clear()

    def _settle(self, result: AttemptResult) -> None:
        stage = self._stages[result.key]
        if result.outcome == "executed":
            self._executed.append(result.key)
            self._queue.done(result.key)
            self._emit("executed", stage, seconds=result.seconds)
        elif result.outcome == "stored":
            self._stored(stage)
        elif result.outcome == "failed":
            self._failed[result.key] = Failure(
                kind=stage.name, cause=result.cause, message=result.message, trace=result.trace
            )
            blocked = self._queue.failed(result.key)
            self._emit("failed", stage, seconds=result.seconds, message=result.message)
            for child in blocked:
                self._blocked[child.key] = result.key
                self._emit("blocked", child, message=f"needs {stage.name} `{result.key}`, which failed")
        else:
            assert result.outcome == "busy", "stages of the local executor are never asked to stop"
            if result.key not in self._waiting:
                self._waiting.add(result.key)
                self._emit("busy", stage)

    def _stored(self, stage: Stage) -> None:
        self._in_store.append(stage.key)
        self._queue.done(stage.key)
        self._emit("stored", stage)

    def _emit(self, what: EventState, stage: Stage, *, seconds: float = 0.0, message: str = "") -> None:
        event = Event(what=what, stage=stage, done=self.settled, total=self._total, seconds=seconds, message=message)
        self._executor.on_event(event)
