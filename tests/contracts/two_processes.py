"""One process of two that step with every method and estimator; writes what each computed.

Two are forked by this script.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from forked_ranks import fork
from safetensors.torch import save_file
from test_estimated_training import ESTIMATORS
from test_train_methods import CHOOSING, CUTTABLE, SHARDABLE, TYPICAL, chosen, sharded_weights, stepped
from torch import Tensor

from harness.training.distributed import rank, world_size

CUTS = (None, 2)
"""Rows at once: all of a share, and two, so that of a step's five rows one process has two pieces and the other one."""
CASES = [(name, cut) for name in CUTTABLE for cut in CUTS if cut or name in TYPICAL]
"""Methods and cuts: a whole share is what a cut share is without a sum over its pieces, so typical methods will do."""


def write(stem: Path, found: tuple[list[Tensor], list[dict[str, float]]]) -> None:
    """Write gradients and metrics by their step."""
    gradients, metrics = found
    save_file({str(step): gradient for step, gradient in enumerate(gradients)}, f"{stem}.safetensors")
    Path(f"{stem}.json").write_text(json.dumps(metrics))


def everything(out: Path) -> None:
    """Write the gradients and the metrics of each method and each estimator, by its place, the cut and the rank."""
    for name, cut in CASES:
        write(out / f"{[*CUTTABLE].index(name)}-{cut}-{rank()}", stepped(name, cut))
    for place, update in enumerate(ESTIMATORS.values(), start=len(CUTTABLE)):
        for cut in CUTS:
            write(out / f"{place}-{cut}-{rank()}", stepped("plain", cut, update=update))
    for place, name in enumerate(SHARDABLE):
        write(out / f"sharded-{place}-{rank()}", stepped(name, CUTS[1], make=sharded_weights))
    for name in CHOOSING:
        (out / f"{name}-{rank()}.json").write_text(json.dumps(chosen(name)))
        if name in SHARDABLE:
            (out / f"sharded-{name}-{rank()}.json").write_text(json.dumps(chosen(name, sharded_weights)))


def together(out: Path) -> None:
    """Be one of the two processes."""
    dist.init_process_group("gloo")
    assert world_size() == 2
    everything(out)
    dist.destroy_process_group()


if __name__ == "__main__":
    fork(together, (Path(sys.argv[1]),))
