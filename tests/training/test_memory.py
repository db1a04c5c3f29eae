"""How many copies of the trainables a step holds at once."""

import weakref

import pytest
import torch
from golden_runs import METHODS, golden, part
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from harness.training.learner import CausalLearner
from harness.training.plain import PlainStep


class Copies(TorchDispatchMode):
    """Counts the live storages that are as large as a given tensor; views share the storage of their base."""

    def __init__(self, like):
        super().__init__()
        self._size = like.untyped_storage().nbytes()
        self._known = {like.untyped_storage()._cdata}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage):
        key = storage._cdata
        if storage.nbytes() != self._size or key in self._known:
            return
        self._known.add(key)
        self.live += 1
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key):
        self._known.discard(key)
        self.live -= 1


class BatchProvider:
    def __init__(self, tensors):
        self._batch = part(tensors, "harmful.0.")

    def next(self, role):
        return self._batch


def peak_of(name, rows_at_once):
    """Return how many copies of its one trainable a step of a method holds at once, ``.grad`` included."""
    meta, tensors = golden("booster")
    base = LlamaForCausalLM(LlamaConfig(**meta["config"]))
    model = get_peft_model(base, LoraConfig(r=7, target_modules=["q_proj"], layers_to_transform=[0]))
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in parameter_name)
    learner = CausalLearner(model, rows_at_once=rows_at_once)
    # With rank 7 no activation has the size of the factor.
    (trainable,) = learner.trainables
    step = METHODS[name].start(learner, BatchProvider(tensors), 1) if METHODS[name] else PlainStep(learner)
    with Copies(trainable) as copies:
        step.backward(part(tensors, "alignment.0."))
    return copies.peak


def test_copies_are_counted_while_they_live():
    like = torch.zeros(3, 5)

    with Copies(like) as copies:
        kept = [like + 1, like + 2]
        (like + 3).sum()
        _view = kept[0].t()
        del kept, _view
        _last = like + 4

    assert (copies.peak, copies.live) == (3, 1)


@pytest.mark.parametrize("rows_at_once", [None, 2])
def test_booster_step_holds_at_most_three_copies_of_the_trainables_more_than_plain_training(rows_at_once):
    plain, booster = peak_of("sft", rows_at_once), peak_of("booster", rows_at_once)

    assert plain >= 1
    assert booster - plain <= 3
