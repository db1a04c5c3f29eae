"""What a method may ask of the trainer besides a gradient: a start, learning rates, and to act after each step."""

import torch
from torch import nn

from harness.training.learning_rates import scale_learning_rates


def test_learning_rate_of_a_parameter_is_scaled_with_its_decay():
    first, second, bias = (nn.Parameter(torch.tensor([value])) for value in (1.0, 1.0, 1.0))
    groups = [{"params": [first, second], "weight_decay": 0.5}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)

    scale_learning_rates(optimizer, [first, second, bias], [1.0, 4.0, 4.0])
    for parameter in (first, second, bias):
        parameter.grad = torch.tensor([3.0])
    optimizer.step()

    # AdamW's first step is the learning rate, whatever the gradient, after a decay by it times the weight decay.
    expected = [1 - 0.01 * 0.5 - 0.01, 1 - 0.04 * 0.5 - 0.04, 1 - 0.04]
    torch.testing.assert_close(torch.cat([first, second, bias]).detach(), torch.tensor(expected))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.04, 0.04]
