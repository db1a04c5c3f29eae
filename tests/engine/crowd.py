"""A toy stage for several processes. What goes wrong in which of them is told by a file in the store's folder."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from toys import root_of, wait_for

from harness.engine.stage import Stage, StageContext
from harness.errors import DataError, Problem, Stopped


def is_gone(pid: int) -> bool:
    # A process that ended and was not waited for is a zombie, which still has its id.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Crowd(Stage):
    name: ClassVar[str] = "crowd"
    version: ClassVar[int] = 1
    parallel: ClassVar[bool] = True
    value: int = 1

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        root = root_of(ctx)
        (root / f"pid-{ctx.rank}").write_text(str(os.getpid()))
        everybody = [root / f"pid-{rank}" for rank in range(int(os.environ.get("WORLD_SIZE", "1")))]
        wait_for(lambda: all(path.exists() and path.read_text() for path in everybody), 60)
        ctx.tracker.log({"rank": ctx.rank}, step=1)
        ctx.facts.update(rank=ctx.rank, sharding=ctx.sharding, shrink=ctx.shrink, device=ctx.device)
        trouble = root / f"trouble-{ctx.rank}"
        match trouble.read_text() if trouble.exists() else "":
            case "data":
                raise DataError("`rows.json` has 3 rows; expected 5")
            case "bug":
                raise RuntimeError("a bug")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "follow":
                wait_for(lambda: is_gone(int((root / "pid-1").read_text())))
                raise RuntimeError("connection closed by peer")
            case "hold":
                (root / f"holding-{ctx.rank}").touch()
                wait_for(ctx.stop, 60)
                raise Stopped("in the middle")
        if ctx.rank == 0:
            (ctx.out / "world.txt").write_text(os.environ.get("WORLD_SIZE", "1"))
