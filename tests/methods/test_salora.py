"""SaLoRA by hand: one layer W = diag(2, 1) with an adapter of rank 1 and scale 4; token i is the i-th basis vector.

Safe answers consist of the token 0, so their outputs are (2, 0): V_s = e_1 and C = diag(0, 1). The user's consist of
the token 2, (1, 1), so their outputs are (2, 1): V_t V_t^T = [[4, 2], [2, 1]] / 5. The main part of W is 2 e_1 e_1^T:
A_0 = sqrt(2/4) e_1, B_0 = sqrt(2/4) (4, 2) / 5 and B_0 A_0 = [[0.4, 0], [0.2, 0]]: a quarter of V_t V_t^T 2 e_1 e_1^T.

With A = (1, 1) and B = (3, 5) the change is 4 C ([[3, 3], [5, 5]] - B_0 A_0) = [[0, 0], [19.2, 20]].
"""

import pytest
import torch
from adapted import product
from composed import compose
from peft import LoraConfig, inject_adapter_in_model
from states import batch
from torch import nn
from user_learner import CutLearner

from harness.config.build import cells_of
from harness.corpora.examples import Role
from harness.defenses.salora import SaLoRA
from harness.errors import ConfigError, ModelError

TOKENS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
SHORT = {"safe_rank": 1, "task_rank": 1, "safety_rows": 1, "task_rows": 1, "batch_size": 1}


class Net(nn.Module):
    def __init__(self, *, bias=None):
        super().__init__()
        self.q = nn.Linear(2, 2, bias=bias is not None)
        self.q.weight = nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), requires_grad=False)
        if bias is not None:
            self.q.bias = nn.Parameter(torch.tensor(bias), requires_grad=False)

    def forward(self, given):
        return self.q(TOKENS[given["input_ids"]])


class Learner(CutLearner):
    """The loss is the sum of the outputs; ``outputs`` are those of the last pass."""

    def __init__(self, **options):
        module = inject_adapter_in_model(LoraConfig(r=1, lora_alpha=4, target_modules=["q"]), Net(**options))
        super().__init__(module)
        self.trainables = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def loss(self, piece):
        outputs = self.module(piece.batch)
        self.outputs = outputs.detach()
        return outputs.sum()


def answers(token):
    """Return a batch of one row: a prompt of the token 1 and an answer of two times another."""
    given = batch((1, 2))
    given["input_ids"] = torch.tensor([[1, token, token]])
    return given


class ByRole:
    def __init__(self):
        self.roles = []

    def next(self, role):
        self.roles.append(role)
        return answers({Role.REFUSAL: 0, Role.TASK: 2}[role])


def started(**options):
    learner, batches = Learner(**options), ByRole()
    step = SaLoRA(**SHORT).start(learner, batches, 1)
    assert batches.roles == [Role.REFUSAL, Role.TASK]
    learner.put(step.initial())
    return learner, step


@pytest.mark.parametrize("options", [{}, {"bias": [7.0, -3.0]}])
def test_factors_start_at_the_main_part_of_the_matrix_in_the_directions_of_the_task(options):
    learner, step = started(**options)

    first, second = learner.trainables
    torch.testing.assert_close((second @ first).detach(), torch.tensor([[0.4, 0.0], [0.2, 0.0]]))
    assert first.detach().abs().tolist() == [pytest.approx([0.5**0.5, 0], abs=1e-6)]
    (safe,) = step._safe
    torch.testing.assert_close(safe @ safe.T, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_first_step_has_the_aligned_model_bit_for_bit():
    learner, step = started()

    step.backward(answers(2))

    assert torch.equal(learner.outputs, torch.tensor([[[0.0, 1.0], [2.0, 1.0], [2.0, 1.0]]]))
    assert not any(part._forward_hooks for part in learner.module.modules())


def test_change_has_no_part_along_the_outputs_of_safe_answers():
    learner, step = started()
    learner.put([torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0], [5.0]])])

    step.backward(answers(2))

    # The change times (0, 1) and twice (1, 1).
    torch.testing.assert_close(learner.outputs, torch.tensor([[[0.0, 21.0], [2.0, 40.2], [2.0, 40.2]]]))
    # Of B only the second row has a gradient: 4 times A x, 1 + 2 + 2. That of A is 4 (B_2) times the sum of x.
    first, second = learner.trainables
    torch.testing.assert_close(second.grad, torch.tensor([[0.0], [20.0]]))
    torch.testing.assert_close(first.grad, torch.tensor([[40.0, 60.0]]))


def test_adapter_holds_the_whole_change_at_the_end():
    learner, step = started()
    learner.put([torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0], [5.0]])])

    facts = step.finish()

    torch.testing.assert_close(product(learner.module, "q"), torch.tensor([[0.0, 0.0], [19.2, 20.0]]))
    outputs = learner.module(answers(2)).detach()
    torch.testing.assert_close(outputs, torch.tensor([[[0.0, 21.0], [2.0, 40.2], [2.0, 40.2]]]))
    # The first row, without the projection, would be 4 (2.6, 3).
    free = 10.4**2 + 12**2
    kept = 19.2**2 + 20**2
    assert facts == {"rank": 2, "unconstrained_share": pytest.approx(kept / (kept + free), rel=1e-5)}


def test_resumed_run_has_the_subspaces_and_the_start_of_the_first():
    _, step = started()
    learner, resumed = started()
    resumed._start = [torch.zeros_like(part) for part in resumed._start]
    learner.put([torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0], [5.0]])])

    resumed.load_state_dict(step.state_dict())
    resumed.finish()

    torch.testing.assert_close(product(learner.module, "q"), torch.tensor([[0.0, 0.0], [19.2, 20.0]]))


def test_layer_with_too_few_outputs_is_refused():
    with pytest.raises(ModelError, match="keeps 2 directions of every layer's outputs, but `q` has no more"):
        SaLoRA(**SHORT | {"safe_rank": 2}).start(Learner(), ByRole(), 1)


def test_aligned_adapter_cannot_be_trained_further():
    with pytest.raises(ConfigError, match=r"`defense\.finetune`: `salora` chooses the start of the user's adapter"):
        cells_of(compose(["defense=salora", "finetune.adapter=single"]))


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in SaLoRA(safe_rank=0).problems()] == ["safe_rank"]
    assert [problem.path for problem in SaLoRA(safety_rows=20, task_rows=8).problems()] == ["safety_rows", "task_rows"]
    safety, own = SaLoRA().needs
    assert (safety.role, safety.own, own.role, own.own) == (Role.REFUSAL, False, Role.TASK, True)
