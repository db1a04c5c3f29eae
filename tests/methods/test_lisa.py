"""Lisa by hand: w = (3, 4), f = w1, g = w2, rho 0.5, K1 = K2 = 2, steps of gradient descent of length 1.

step  state  anchor of the other  w            gradient
0     f      (3, 4)               (3, 4)       (1, 0) + 0
1     f      (3, 4)               (2, 4)       (1, 0) + 0.5 (-1, 0)
2     g      (1.5, 4)             (1.5, 4)     (0, 1) + 0
3     g      (1.5, 4)             (1.5, 3)     (0, 1) + 0.5 (0, -1)
4     f      (1.5, 2.5)           (1.5, 2.5)   (1, 0) + 0
5     f      (1.5, 2.5)           (0.5, 2.5)   (1, 0) + 0.5 (-1, 0)
"""

import pytest
import torch
from user_learner import Pair, Safety, UserLearner

from harness.corpora.examples import Role
from harness.defenses.lisa import Lisa
from harness.errors import ConfigError

SAFETY = {"place": torch.tensor(-1)}


def learner_at(first, second):
    return UserLearner(Pair(first, second), lambda w, batch: (w.first if batch["place"] < 0 else w.second).sum())


def user_batch(place):
    return {"place": torch.tensor(place)}


def places(learner):
    return [int(batch["place"]) for batch in learner.seen]


def run(settings, learner, calls, *, total_steps=6):
    step = settings.start(learner, Safety(SAFETY), total_steps)
    metrics = []
    for call in range(calls):
        learner.steps_taken = call
        metrics.append(step.backward(user_batch(call)))
    return metrics


def test_lisa_on_two_weights_writes_the_gradients_computed_by_hand():
    learner = learner_at(3, 4)
    step = Lisa(rho=0.5, alignment_steps=2, user_steps=2).start(learner, Safety(SAFETY), 6)
    written, drifts = [], []

    for call in range(6):
        metrics = step.backward(user_batch(call))
        written.append(learner.written)
        drifts.append((float(metrics["drift"]), float(metrics["proximal"])))
        learner.step(1.0)

    assert written == [[1, 0], [0.5, 0], [0, 1], [0, 0.5], [1, 0], [0.5, 0]]
    assert drifts == [(0, 0), (1, 0.25), (0, 0), (1, 0.25), (0, 0), (1, 0.25)]


def test_user_batches_that_arrive_during_alignment_wait_and_keep_their_order():
    learner = learner_at(0, 0)

    metrics = run(Lisa(alignment_steps=1, user_steps=2), learner, 6)

    assert places(learner) == [-1, 0, 1, -1, 2, 3]
    assert [row["user_batches_waiting"] for row in metrics] == [1, 1, 1, 2, 2, 2]


def test_published_budget_discards_them():
    learner = learner_at(0, 0)

    metrics = run(Lisa(alignment_steps=1, user_steps=2, budget="published"), learner, 6)

    assert places(learner) == [-1, 1, 2, -1, 4, 5]
    assert metrics[-1]["user_batches_waiting"] == 0


def test_proximal_term_starts_after_the_delay():
    settings = Lisa(rho=0.5, alignment_steps=9, user_steps=1, delay=0.2)
    learner = learner_at(3, 4)
    step = settings.start(learner, Safety(SAFETY), 10)
    written = []

    for call in range(4):
        step.backward(user_batch(call))
        written.append(learner.written)
        learner.step(1.0)

    assert written == [[1, 0], [1, 0], [0, 0], [0, 0]], "0.5 times the drift of (-2, 0), from the third step on"


def test_resumed_run_has_its_phase_its_anchors_and_its_waiting_batches():
    settings = Lisa(rho=0.5, alignment_steps=2, user_steps=2)
    first, second = learner_at(3, 4), learner_at(3, 4)
    step = settings.start(first, Safety(SAFETY), 6)
    for call in range(3):
        step.backward(user_batch(call))
        first.step(1.0)
    resumed = settings.start(second, Safety(SAFETY), 6)
    second.put([weight.detach() for weight in first.trainables])
    second.steps_taken = 3

    resumed.load_state_dict(step.state_dict())
    metrics = resumed.backward(user_batch(3))

    assert second.written == [0, 0.5]
    assert (places(second), metrics["user_batches_waiting"]) == ([1], 2)


def test_lisa_needs_alignment_rows_and_reports_settings_out_of_range():
    (need,) = Lisa(safety_rows=50, safety_batch_size=5).needs
    wrong = Lisa(rho=-1, delay=2, alignment_steps=0, user_steps=0, safety_rows=0, safety_batch_size=0).problems()

    assert (need.role, need.rows, need.batch_size) == (Role.REFUSAL, 50, 5)
    assert len(wrong) == 6
    assert not Lisa().problems()


@pytest.mark.parametrize("budget", ["steps", "published"])
def test_every_step_trains_on_one_batch(budget):
    learner = learner_at(0, 0)

    run(Lisa(alignment_steps=3, user_steps=2, budget=budget), learner, 12)

    assert len(learner.seen) == 12


def test_batches_that_wait_on_two_processes_are_not_given_to_one():
    settings = Lisa(alignment_steps=2, user_steps=2)
    learner = learner_at(3, 4)
    step = settings.start(learner, Safety(SAFETY), 6)
    step.backward(user_batch(0))
    state = step.state_dict()
    of_two = state | {"waiting": state["waiting"] * 2}

    with pytest.raises(ConfigError, match=r"`processes`: 1, but the checkpoint was written by 2") as caught:
        settings.start(learner, Safety(SAFETY), 6).load_state_dict(of_two)

    assert "queued user batches" in str(caught.value)
