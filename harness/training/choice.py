"""What a method chooses to train on: looked at once before the training, and stored for a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.corpora.batches import Pool, RoleBatches, collate
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.engine.files import read_json, write_json
from harness.engine.seeding import derive
from harness.errors import DataError
from harness.protocols import ChoosesRows, Chosen
from harness.training.budget import Budget
from harness.training.distributed import broadcast_numbers, rank, world_size
from harness.training.learner import CausalLearner
from harness.training.order import Order
from harness.training.step_trainer import Rows, collator

if TYPE_CHECKING:
    from harness.protocols import Batch

FILE = "chosen.json"
"""What was chosen, in the folder of the checkpoints' parent."""


class StageRows:
    """The examples of a stage; satisfies ``protocols.GivenRows``."""

    def __init__(
        self, own: Sequence[Encoded], pools: Mapping[Role, Pool], *, batch_size: int, seed: int, pad_id: int
    ) -> None:
        """Store the examples.

        Args:
            own: the stage's own examples.
            pools: those of every role that the method samples.
            batch_size: global batch size.
            seed: of the order of epochs.
            pad_id: the padding token.
        """
        self._own = own
        self._pools = pools
        self._batch_size = batch_size
        self._seed = seed
        self._pad_id = pad_id

    @property
    def own(self) -> Sequence[Encoded]:
        """The stage's own examples, the mixed-in ones included."""
        return self._own

    def of(self, role: Role) -> Sequence[Encoded]:
        """Return the examples of a role."""
        return self._pools[role].rows

    def partners(self, role: Role) -> Sequence[Encoded]:
        """Return the refusals of the prompts of a role."""
        return self._pools[role].partners

    def batches(self, rows: Sequence[Encoded]) -> Iterator[Batch]:
        """Yield examples in their order, in batches that are the same on every process."""
        for start in range(0, len(rows), self._batch_size):
            yield collate(rows[start : start + self._batch_size], self._pad_id)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch of the stage's own examples, in a seeded order."""
        order = Order(len(self._own), self._batch_size, seed=self._seed, rank=rank(), world_size=world_size())
        order.epoch = number
        numbered, collate_rows = Rows(self._own), collator(self._pad_id)
        for places in order:
            yield collate_rows([numbered[place] for place in places])


def chosen_rows(
    method: object,
    learner: CausalLearner,
    rows: Sequence[Encoded],
    pools: Mapping[Role, Pool],
    *,
    budget: Budget,
    seed: int,
    pad_id: int,
    work: Path,
) -> Chosen | None:
    """Return what a method trains on, or None if it does not choose; a resumed run reads what was chosen.

    Args:
        method: the method.
        learner: the model, whose trainable parameters are restored.
        rows: the stage's own examples.
        pools: those of every role that the method samples.
        budget: gives the batch size.
        seed: the run's seed; the choice has streams of its own.
        pad_id: the padding token.
        work: the folder of the run.

    Raises:
        DataError: nothing is left to train on.
    """
    if not isinstance(method, ChoosesRows):
        return None
    file = work / FILE
    # All processes follow the first: another one could see a file that was written in the meantime.
    (known,) = broadcast_numbers([file.is_file()], learner.trainables[0].device)
    if known:
        return _read(file, rows)
    own_seed = derive(seed, "choice")
    given = StageRows(rows, pools, batch_size=budget.batch_size, seed=own_seed, pad_id=pad_id)
    batches = RoleBatches(pools, pad_id=pad_id, seed=own_seed, rank=rank(), world_size=world_size())
    chosen = method.choose(learner, given, batches)
    if not chosen.rows:
        raise DataError(
            f"`{method.name}` leaves none of {len(rows)} examples to train on; expected at least one. Lower the share "
            "that it leaves out"
        )
    if rank() == 0:
        _write(file, rows, chosen)
    return chosen


def _write(file: Path, rows: Sequence[Encoded], chosen: Chosen) -> None:
    """Write the indices and, where tokens were left out, the new labels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = [[place, None if row == rows[place] else row.labels] for place, row in chosen.rows]
    write_json(file, {"rows": stored, "facts": dict(chosen.facts)}, durable=True)


def _read(file: Path, rows: Sequence[Encoded]) -> Chosen:
    stored = read_json(file)
    kept = [
        (place, rows[place] if labels is None else rows[place]._replace(labels=labels))
        for place, labels in stored["rows"]
    ]
    return Chosen(kept, stored["facts"])
