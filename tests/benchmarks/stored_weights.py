"""How much smaller stored weights are than all weights of the model: ``python tests/benchmarks/stored_weights.py``.

The tiny model, saved once, is aligned with all its weights trained, in both number formats and at learning rates of
adapters and of full training.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from composed import compose

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor
from harness.models.tiny import Synthetic

CELL = ("align.adapter=full", "align.rows=96", "align.budget.epochs=2", "align.budget.weight_decay=0")


def main() -> None:
    """Print one line per number format and learning rate."""
    with TemporaryDirectory() as folder:
        base, store = Path(folder) / "base", Store(Path(folder) / "store")
        base.mkdir()
        Synthetic(steps=250).write(base)
        print("format    rate   steps  changed  stored/whole  lost in rounding")
        for dtype in ("float32", "bfloat16"):
            for rate in (1e-3, 1e-5, 1e-6):
                source = [f"model.source.path={base}", f"model.source.dtype={dtype}"]
                plain = ["model.encoding.template=plain", "model.encoding.newline=false"]
                lines = ["model=local", *source, *plain, *CELL, f"align.budget.learning_rate={rate}"]
                (cell,) = cells_of(compose(lines))
                stage = cell.stages["align"]
                outcome = LocalExecutor().run(Plan.of([stage]), store)
                assert outcome.complete, outcome.failed
                facts = json.loads((store.path(stage) / "manifest.json").read_text())["facts"]
                stored = facts["weights"]
                share = stored["bytes"] / stored["whole_bytes"]
                numbers = f"{stored['changed']:7.3f}  {share:12.3f}  {stored['lost']:16.4f}"
                print(f"{dtype:9} {rate:.0e}  {facts['steps']:4}  {numbers}", flush=True)


if __name__ == "__main__":
    main()
