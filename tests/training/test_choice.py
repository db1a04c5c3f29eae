"""What a method chose is stored, so that a resumed run trains on the same without looking again."""

import pytest
import torch
from golden_runs import BUDGET, Recorder, build, golden, rows_of

from harness.corpora.encode import Encoded
from harness.errors import DataError
from harness.protocols import Chosen
from harness.training.plain import PlainStep
from harness.training.trainer import train

ROWS = rows_of(golden("sft")[1], "alignment", 8)


class Choosing:
    """Keeps the given examples, the last of them with one token less; counts how often it is asked."""

    name, version, needs = "choosing", 1, ()

    def __init__(self, *kept):
        self.asked = 0
        self._kept = kept

    def choose(self, learner, given, batches):
        self.asked += 1
        rows = [(place, given.own[place]) for place in self._kept]
        if rows:
            place, row = rows[-1]
            rows[-1] = (place, Encoded(row.input_ids, [*row.labels[:-1], -100]))
        return Chosen(rows, {"why": "by hand"})

    def start(self, learner, batches, total_steps):
        self.examples, self.steps = learner.example_count, total_steps
        return PlainStep(learner)


def run(method, work, rows=ROWS):
    model = build()
    report = train(model, method=method, rows=rows, budget=BUDGET, seed=0, pad_id=0, work=work, tracker=Recorder())
    return report, [p.detach().clone() for p in model.parameters() if p.requires_grad]


def test_training_is_that_of_the_chosen_examples_alone(tmp_path):
    method = Choosing(1, 4, 6)
    last = Encoded(ROWS[6].input_ids, [*ROWS[6].labels[:-1], -100])

    report, weights = run(method, tmp_path / "chosen")
    _, expected = run(None, tmp_path / "alone", [ROWS[1], ROWS[4], last])

    assert all(map(torch.equal, weights, expected))
    assert report.chosen == Chosen([(1, ROWS[1]), (4, ROWS[4]), (6, last)], {"why": "by hand"})
    assert (method.examples, method.steps) == (3, BUDGET.steps(3)) == (3, report.steps)


@pytest.mark.slow
def test_resumed_run_reads_what_was_chosen(tmp_path):
    method = Choosing(1, 4, 6)

    first, weights = run(method, tmp_path)
    second, resumed = run(method, tmp_path)

    assert method.asked == 1
    assert second.chosen == first.chosen
    assert all(map(torch.equal, weights, resumed))


def test_choice_of_nothing_is_reported(tmp_path):
    with pytest.raises(DataError, match=rf"`choosing` leaves none of {len(ROWS)} examples"):
        run(Choosing(), tmp_path)
