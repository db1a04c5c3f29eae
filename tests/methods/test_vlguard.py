"""VLGuard by hand: g = w1, f = 2 w2, lambda 0.1: the update of ``joint`` is (1, 0.2)."""

import torch
from user_learner import Pair, Safety, UserLearner

from harness.corpora.examples import Role
from harness.defenses.safe_instruct import SafeInstruct
from harness.defenses.vlguard import VLGuard

USER, SAFETY = {"place": torch.tensor(0)}, {"place": torch.tensor(1)}


def learner():
    return UserLearner(Pair(3, 4), lambda w, batch: (2 * w.second if batch["place"] else w.first).sum())


def test_joint_form_adds_the_weighted_gradient_of_a_safety_batch():
    model, safety = learner(), Safety(SAFETY)
    step = VLGuard(form="joint", safety_batch_size=4, lamb=0.1).start(model, safety, 1)

    metrics = step.backward(USER)

    torch.testing.assert_close(torch.tensor(model.written), torch.tensor([1.0, 0.2]))
    assert (float(metrics["loss"]), float(metrics["safety_loss"])) == (3, 8)
    assert safety.roles == [Role.REFUSAL]


def test_mixed_rows_are_trained_on_plainly_and_never_drawn():
    for method in (VLGuard(safety_rows=60), SafeInstruct(safety_rows=60)):
        model, safety = learner(), Safety(SAFETY)

        method.start(model, safety, 1).backward(USER)

        assert model.written == [1, 0]
        assert safety.roles == []
        (need,) = method.needs
        assert (need.role, need.rows, need.batch_size) == (Role.REFUSAL, 60, None)


def test_settings_that_a_form_does_not_have_or_lacks_are_reported():
    mix, joint = VLGuard(lamb=0.1, safety_batch_size=4), VLGuard(form="joint")

    assert [problem.path for problem in mix.problems()] == ["safety_batch_size", "lamb"]
    assert [problem.path for problem in joint.problems()] == ["safety_batch_size", "lamb"]
    assert VLGuard(form="joint", lamb=-1, safety_batch_size=0, safety_rows=0).problems()
    assert SafeInstruct(safety_rows=0).problems()
    assert not VLGuard().problems()
