"""A module of linear layers with LoRA adapters by peft, and a learner for it that knows an alignment change."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from user_learner import UserLearner

from harness.protocols import Product


class AlignedLearner(UserLearner):
    """Satisfies ``protocols.Learner`` with the products ``b @ a`` as alignment changes, by layer."""

    def __init__(self, module, alignment, loss=None):
        super().__init__(module, loss)
        self.trainables = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.alignment = {name: Product(torch.tensor(b), torch.tensor(a)) for name, (b, a) in alignment.items()}


def adapted(layers, *, alpha=None):
    """Return a module with a layer for each pair of factors ``B`` and ``A``, as nested lists, by name.

    Args:
        layers: the factors.
        alpha: numerator of the scale; None is the rank, for a scale of 1.
    """
    rank = len(next(iter(layers.values()))[1])
    module = nn.Module()
    for name, (b, a) in layers.items():
        module.add_module(name, nn.Linear(len(a[0]), len(b), bias=False))
    settings = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(layers))
    module = inject_adapter_in_model(settings, module)
    with torch.no_grad():
        for name, (b, a) in layers.items():
            layer = module.get_submodule(name)
            layer.lora_B["default"].weight.copy_(torch.tensor(b))
            layer.lora_A["default"].weight.copy_(torch.tensor(a))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return module


def product(module, name):
    """Return what a layer's adapter adds to its matrix, scale included."""
    layer = module.get_submodule(name)
    return (layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()


def zeros(learner):
    """Return a start whose adapters added nothing, as with a fresh adapter."""
    return [torch.zeros_like(weight) for weight in learner.trainables]


def copies(module):
    """Return the trainable parameters as they are now."""
    return [parameter.detach().clone() for parameter in module.parameters() if parameter.requires_grad]
