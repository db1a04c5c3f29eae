"""Toy stages that run in milliseconds. Each execution leaves a line in ``runs.log`` beside the store's folders."""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar, Protocol, final

from harness.engine import gpu
from harness.engine.checks import not_negative
from harness.engine.plan import Plan
from harness.engine.stage import Stage, StageContext, origin_of
from harness.engine.store import Store
from harness.errors import DataError, Problem, Stopped
from harness.local.executor import LocalExecutor

ALLOW = ("toys.",)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Method(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def lamb(self) -> float: ...

    def start(self) -> int: ...


@final
@dataclass(frozen=True, kw_only=True)
class Booster:
    name: ClassVar[str] = "booster"
    version: ClassVar[int] = 1
    lamb: float = 5.0
    alpha: float = 0.1
    steps: int | None = None

    def start(self) -> int:
        return 1

    def problems(self) -> list[Problem]:
        return not_negative(self, "lamb", "alpha")


@final
@dataclass(frozen=True, kw_only=True)
class Plain:
    name: ClassVar[str] = "plain"
    version: ClassVar[int] = 1


@final
@dataclass(frozen=True, kw_only=True)
class Origin:
    name: ClassVar[str] = "origin"
    version: ClassVar[int] = 1
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Origin":
        if text != "sst2":
            raise DataError(f"{text!r} is no source")
        return cls(digest="123")


@final
@dataclass(frozen=True, kw_only=True)
class Kit:
    """One field of every kind that settings may have."""

    name: ClassVar[str] = "kit"
    version: ClassVar[int] = 3
    count: int
    rate: float = 0.5
    label: str = "plain"
    enabled: bool = False
    colour: Colour = Colour.RED
    sizes: tuple[int, ...] = ()
    span: tuple[str, float] = ("a", 1.0)
    limit: float | None = None
    inner: Booster | None = None
    method: Method | None = None
    many: tuple[Booster, ...] = ()
    origin: Origin | Plain | None = None


def root_of(ctx: StageContext) -> Path:
    return ctx.work.parent.parent


def ran(ctx: StageContext, name: str) -> None:
    with (root_of(ctx) / "runs.log").open("a") as stream:
        stream.write(f"{name}\n")


def runs(root: Path) -> Counter[str]:
    log = root / "runs.log"
    return Counter(log.read_text().split()) if log.exists() else Counter()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Number(Stage):
    name: ClassVar[str] = "number"
    version: ClassVar[int] = 1
    value: float
    needs: str = ""

    def preflight(self) -> list[Problem]:
        return [Problem(self.needs, "it is missing")] if self.needs else []

    def run(self, ctx: StageContext) -> None:
        ran(ctx, f"number:{self.value}")
        (ctx.out / "sub folder").mkdir()
        (ctx.out / "sub folder" / "number.txt").write_text(str(float(self.value)))
        ctx.facts["digits"] = len(str(float(self.value)))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Stage):
    """Adds to its parent's number. What it does besides is told by files in the store's folder, not by its identity."""

    name: ClassVar[str] = "add"
    version: ClassVar[int] = 1
    parent: Stage
    amount: float
    method: Method | None = None

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        ran(ctx, f"add:{self.amount:g}")
        ctx.memory["seen"] = ctx.memory.get("seen", 0) + 1
        trouble = root_of(ctx) / f"trouble-{self.amount:g}"
        match trouble.read_text() if trouble.exists() else "":
            case "data":
                raise DataError("`rows.json` has 3 rows; expected 5")
            case "bug":
                raise RuntimeError("a bug")
            case "full":
                raise OSError(28, "No space left on device")
            case "interrupt":
                raise KeyboardInterrupt
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hold":
                (root_of(ctx) / f"holding-{self.amount:g}").touch()
                wait_for(lambda: not trouble.exists(), seconds=120)
        number = float((ctx.input(self.parent) / "sub folder" / "number.txt").read_text())
        (ctx.out / "sub folder").mkdir()
        (ctx.out / "sub folder" / "number.txt").write_text(str(number + self.amount))
        ctx.facts["seen"] = ctx.memory["seen"]
        ctx.facts["pid"] = os.getpid()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Count(Stage):
    """Adds one to its parent's number so many times, slowly where the store's folder says so; it can be resumed."""

    name: ClassVar[str] = "count"
    version: ClassVar[int] = 1
    parent: Stage
    steps: int

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        saved = ctx.work / "saved.txt"
        begin = int(saved.read_text()) if saved.exists() else 0
        ran(ctx, f"count:from:{begin}")
        for step in range(begin, self.steps):
            if (root_of(ctx) / "slow").exists():
                time.sleep(0.2)
            ran(ctx, f"count:step:{step}")
            saved.write_text(str(step + 1))
            if ctx.stop():
                raise Stopped(f"saved after step {step}")
        number = float((ctx.input(self.parent) / "sub folder" / "number.txt").read_text())
        (ctx.out / "sub folder").mkdir()
        (ctx.out / "sub folder" / "number.txt").write_text(str(number + self.steps))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Mix(Stage):
    name: ClassVar[str] = "mix"
    version: ClassVar[int] = 1
    left: Stage
    right: Stage

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        ran(ctx, "mix")
        ctx.input(self.left)
        ctx.input(self.right)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Tune(Stage):
    """Adds to its parent's number with the base in memory; waits until so many of its kind run at the same time."""

    name: ClassVar[str] = "tune"
    version: ClassVar[int] = 1
    loads_base: ClassVar[bool] = True
    parent: Stage
    amount: float
    together: int = 1

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        base = origin_of(self)
        ctx.facts["loaded"] = ctx.memory.get("base") != base
        ctx.memory["base"] = base
        ctx.facts["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        ctx.facts["workers_of_gpu"] = gpu.workers()
        ctx.facts["pid"] = os.getpid()
        (root_of(ctx) / f"here-{self.amount:g}").touch()
        wait_for(lambda: len(list(root_of(ctx).glob("here-*"))) >= self.together)
        number = float((ctx.input(self.parent) / "sub folder" / "number.txt").read_text())
        (ctx.out / "sub folder").mkdir()
        (ctx.out / "sub folder" / "number.txt").write_text(str(number + self.amount))


@final
class Silent:
    """A tracker that drops everything."""

    name = "silent"
    version = 1

    def open(self, *, key: str, kind: str, work: Path) -> "Silent":
        return self

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        return

    def close(self) -> None:
        return


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def heedful() -> None:
    """Let a new process hear Ctrl-C and a closed terminal, also if whoever runs the tests does not.

    A shell hides the one from `make test &`, and `nohup` the other.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def chain(length: int, *, start: float = 0.0) -> Stage:
    stage: Stage = Number(value=start)
    for amount in range(1, length):
        stage = Add(parent=stage, amount=amount)
    return stage


def executor(**settings: object) -> LocalExecutor:
    return LocalExecutor(**{"tracker": Silent(), "poll_seconds": 0.02, **settings})


def run(root: Path, leaves: list[Stage], **settings: object):
    return executor(**settings).run(Plan.of(leaves), Store(root, allow=ALLOW))
