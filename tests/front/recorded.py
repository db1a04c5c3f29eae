"""A sweep that was asked for, on a store of its own, without running it: real cells of the tiny model."""

from dataclasses import dataclass
from pathlib import Path

from composed import compose

from harness.config.build import cells_of, settings_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.sweep.record import record_sweep, sweep_id


@dataclass(frozen=True)
class Recorded:
    store: Store
    sweep: str
    plan: Plan

    def stages(self, kind: str):
        return [stage for stage in self.plan.stages if stage.name == kind]

    def finish(self, *stages) -> None:
        """Give stages an artifact that holds one file."""
        for stage in stages:
            out = self.store.work(stage.key) / "out"
            out.mkdir(parents=True)
            self.store.write_spec(stage, out)
            (out / "file").write_text("content")
            self.store.commit(stage, out, facts={}, provenance={"seconds": 2.0})


def record(root: Path, *overrides: str) -> Recorded:
    compositions = compose(list(overrides))
    cells, settings = cells_of(compositions), settings_of(compositions[0])
    plan = Plan.of(leaf for cell in cells for leaf in cell.leaves)
    store = Store(root)
    store.prepare()
    store.register(plan.stages)
    sweep = sweep_id(cells, settings.title)
    record_sweep(store, sweep, cells=cells, plan=plan, costs={}, settings=settings)
    return Recorded(store, sweep, plan)
