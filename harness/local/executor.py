"""The local executor: walks the plan on this machine."""

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
from harness.execution.executor import Event, Failure, Outcome, unheard
from harness.execution.ranks import Processes
from harness.execution.state import EventState
from harness.local.ready_queue import ReadyQueue
from harness.local.workers import InProcess, ProcessPool, WorkerConfig, WorkerPool
from harness.tracking.jsonl import Jsonl


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Runs a plan on this machine: a stage is stored, run, or blocked by a failed ancestor; unrelated stages go on.

    Attributes:
        workers: 1 runs everything in this process; more run that many spawned processes.
        device: a torch device string.
        tracker: opens the curve of each stage.
        on_event: called in this process for everything that happens to a stage.
        initialize: called once in every process that runs stages, before the first; picklable if it is not this one.
        processes: how many processes share a stage, by its kind; a kind that is not named runs in one.
        poll_seconds: how often to look at a stage on which another process works.
    """

    workers: int = 1
    device: str = "cpu"
    tracker: TrackerSettings = field(default_factory=Jsonl)
    on_event: Callable[[Event], None] = unheard
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
        walk = _Walk(self, plan, store, pending)
        if not pending:
            return walk.outcome()
        store.prepare()
        store.register(plan.stages)
        crew = self._crew(store)
        try:
            walk.run(crew)
        except KeyboardInterrupt:
            message = f"Stopped. {walk.settled} of {len(plan.stages)} stages are settled; run again to go on from here."
            raise Interrupted(message) from None
        finally:
            crew.stop()
        return walk.outcome()

    def _crew(self, store: Store) -> WorkerPool:
        if self.workers > 1:
            briefing = WorkerConfig(
                root=store.root,
                allow=store.allow,
                tracker=self.tracker,
                device=self.device,
                initialize=self.initialize,
                processes=self.processes,
            )
            return ProcessPool(self.workers, briefing)
        if self.initialize is not None:
            self.initialize()
        desk = WorkerContext(
            store=store,
            claims=Claims(store.claims),
            tracker=self.tracker,
            device=self.device,
            processes=self.processes,
            initialize=self.initialize,
        )
        return InProcess(desk)


class _Walk:
    """One run of a plan under way."""

    def __init__(self, executor: LocalExecutor, plan: Plan, store: Store, pending: Sequence[Stage]) -> None:
        self._executor = executor
        self._store = store
        self._total = len(plan.stages)
        self._stages = {stage.key: stage for stage in pending}
        self._frontier = ReadyQueue(pending)
        self._executed: list[str] = []
        self._in_store: list[str] = []
        self._failed: dict[str, Failure] = {}
        self._blocked: dict[str, str] = {}
        self._waiting: set[str] = set()
        for stage in plan.stages:
            if stage.key not in self._stages and store.has(stage):
                self._in_store.append(stage.key)
                self._tell("stored", stage)

    @property
    def settled(self) -> int:
        """How many stages of the plan neither run nor have to."""
        return self._total - len(self._frontier)

    def outcome(self) -> Outcome:
        return Outcome(
            executed=tuple(self._executed), stored=tuple(self._in_store), failed=self._failed, blocked=self._blocked
        )

    def run(self, crew: WorkerPool) -> None:
        """Settle every pending stage."""
        running = 0
        busy_elsewhere: list[str] = []
        while len(self._frontier):
            while running < crew.size and (stage := self._frontier.next()) is not None:
                if self._store.has(stage):
                    self._stored(stage)
                    continue
                if stage.key not in self._waiting:
                    self._tell("running", stage)
                crew.begin(stage)
                running += 1
            # Whoever has nothing to begin looks again, after a while, at what other processes are doing.
            timeout = self._executor.poll_seconds if busy_elsewhere else None
            ended = crew.ended(timeout) if running else []
            running -= len(ended)
            for result in ended:
                if result.outcome == "busy":
                    busy_elsewhere.append(result.key)
                self._settle(result)
            if busy_elsewhere and not ended:
                if not running:
                    time.sleep(self._executor.poll_seconds)
                for key in busy_elsewhere:
                    self._frontier.put_back(key)
                busy_elsewhere.clear()

    def _settle(self, result: AttemptResult) -> None:
        stage = self._stages[result.key]
        if result.outcome == "executed":
            self._executed.append(result.key)
            self._frontier.done(result.key)
            self._tell("executed", stage, seconds=result.seconds)
        elif result.outcome == "stored":
            self._stored(stage)
        elif result.outcome == "failed":
            self._failed[result.key] = Failure(
                kind=stage.name, cause=result.cause, message=result.message, trace=result.trace
            )
            blocked = self._frontier.failed(result.key)
            self._tell("failed", stage, seconds=result.seconds, message=result.message)
            for child in blocked:
                self._blocked[child.key] = result.key
                self._tell("blocked", child, message=f"needs {stage.name} `{result.key}`, which failed")
        else:
            assert result.outcome == "busy", "nobody asks a stage of this executor to stop"
            if result.key not in self._waiting:
                self._waiting.add(result.key)
                self._tell("busy", stage)

    def _stored(self, stage: Stage) -> None:
        self._in_store.append(stage.key)
        self._frontier.done(stage.key)
        self._tell("stored", stage)

    def _tell(self, what: EventState, stage: Stage, *, seconds: float = 0.0, message: str = "") -> None:
        event = Event(what=what, stage=stage, done=self.settled, total=self._total, seconds=seconds, message=message)
        self._executor.on_event(event)
