"""The aligned model that KL and LDIFS compare with is no second model: no frozen weight is ever copied."""

import pytest
import torch
from test_memory import Copies
from transformers import LlamaConfig, LlamaForCausalLM

from harness.defenses.kl import KL
from harness.defenses.ldifs import LDIFS
from harness.models.adapter import Lora, attach
from harness.training.learner import CausalLearner

BATCH = {
    "input_ids": torch.tensor([[5, 7, 9, 11, 13]]),
    "attention_mask": torch.ones(1, 5, dtype=torch.long),
    "labels": torch.tensor([[-100, -100, 9, 11, 13]]),
}


def build():
    torch.manual_seed(0)
    # No activation of a batch of five tokens has as many entries as one of these matrices.
    config = LlamaConfig(
        hidden_size=24, intermediate_size=52, num_hidden_layers=2, num_attention_heads=2, vocab_size=71
    )
    return attach(LlamaForCausalLM(config), Lora(rank=2), seed=0)


class Everything(Copies):
    """Counts the live copies of any of the given tensors, by the size of their storage."""

    def __init__(self, tensors):
        super().__init__(tensors[0])
        self._sizes = {tensor.untyped_storage().nbytes() for tensor in tensors}
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def _note(self, storage):
        self._size = storage.nbytes() if storage.nbytes() in self._sizes else -1
        super()._note(storage)


def frozen_matrices(model):
    return [p for p in model.parameters() if not p.requires_grad and p.dim() == 2]


def test_copy_of_the_model_would_be_counted():
    import copy

    model = build()
    frozen = frozen_matrices(model)

    with Everything(frozen) as copies:
        _second = copy.deepcopy(model)

    assert copies.peak >= len(frozen)


@pytest.mark.parametrize("method", [KL(lamb=1.0), LDIFS(rho=1.0), LDIFS(rho=1.0, distance="gated_sum")])
def test_step_against_the_aligned_model_copies_no_frozen_weight(method):
    model = build()
    learner = CausalLearner(model)

    with Everything(frozen_matrices(model)) as copies:
        step = method.start(learner, None, 2)
        for _ in range(2):
            step.backward(BATCH)

    assert copies.peak == 0
