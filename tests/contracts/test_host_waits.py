"""How often the host waits for the device in a step of each method, counted on the meta device.

Its tensors have shapes and no values, so whatever needs a value on the host is seen: it is counted, and given zeros.
"""

import math
from functools import cache

import pytest
import torch
from test_train_methods import CUTTABLE, TYPICAL, alignment_of, build, prepared, rows
from torch.utils._python_dispatch import TorchDispatchMode

from harness.corpora.batches import RoleBatches, collate
from harness.mechanisms import row_noise
from harness.models.projections import fused_projections
from harness.models.rotary import fused_rotary
from harness.training.learner import CausalLearner
from harness.training.meter import Meter
from harness.training.passes import Passes
from harness.training.plain import PlainStep

META = torch.device("meta")
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::equal",
}
INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
"""Operators whose result, or its shape, the host has to be told."""


KNOWN = {"surgery": {"aten::_local_scalar_dense"}}
"""Waits of transformers: for eager attention, whose weights surgery needs, it asks whether anything is masked."""


def tensors_in(arguments):
    """Return the tensors among the arguments of an operator, which may be lists of them."""
    for each in arguments:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from tensors_in(each)


def described(argument):
    """Return what an operator on the meta device knows of an argument."""
    if isinstance(argument, torch.Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype, argument.device
    if isinstance(argument, list | tuple):
        return tuple(described(each) for each in argument)
    return type(argument), argument


@cache
def returns_a_tensor_of_its_own(func):
    """Return whether an operator writes to nothing and returns one tensor, which is no view."""
    (*others,) = func._schema.returns
    aliases = [each.alias_info for each in (*func._schema.arguments, *others) if each.alias_info is not None]
    return not aliases and [str(each.type) for each in others] == ["Tensor"]


RETURNED = {}
"""Shape, strides and type of what an operator returned, by its arguments: working these out anew takes milliseconds."""


def on_the_meta_device(func, args, kwargs):
    """Run an operator on tensors of the meta device, or repeat what it returned for others like these."""
    if not returns_a_tensor_of_its_own(func):
        return func(*args, **kwargs)
    key = func, described(args), tuple((name, described(value)) for name, value in kwargs.items())
    if key not in RETURNED:
        found = func(*args, **kwargs)
        if found.device != META:
            return found
        RETURNED[key] = found.shape, found.stride(), found.dtype
        return found
    shape, strides, dtype = RETURNED[key]
    return torch.empty_strided(shape, strides, dtype=dtype, device=META)


class HostWaits(TorchDispatchMode):
    """Counts the operators that wait for the meta device, and answers with zeros."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        inputs = [*tensors_in(args), *tensors_in(kwargs.values())]
        on_meta = any(each.device == META for each in inputs)
        if name == "aten::_to_copy" and "device" in kwargs:
            target = torch.device(kwargs["device"])
            if on_meta and target.type == "cpu":
                self.seen.append("copy to the host")
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if not on_meta and target == META and not kwargs.get("non_blocking"):
                self.seen.append("copy from the host that waits")
        elif name == "aten::copy_" and len({each.device for each in inputs}) == 2:
            self.seen.append("copy between host and device")
        elif on_meta and name in WAITING:
            self.seen.append(name)
            return torch.zeros((), dtype=args[0].dtype).item()
        elif on_meta and name in INDEXING and any(each is not None and each.dtype == torch.bool for each in args[1]):
            self.seen.append("index with a mask")
        return on_the_meta_device(func, args, kwargs) if on_meta else func(*args, **kwargs)


def noise_without_a_generator(positions, *, layers, width, seed, device):
    """Stand in for ``gaussian``: the meta device has no generators."""
    return torch.empty((layers, *positions.shape, width), device=device)


def waits_of(name, rows_at_once, monkeypatch):
    """Return what the host waits for in the second step of a method; probes and anchors belong to the first."""
    monkeypatch.setattr(row_noise, "gaussian", noise_without_a_generator)
    monkeypatch.setattr("harness.defenses.repnoise.loss.gaussian", noise_without_a_generator)
    method, pools = prepared(name)
    model, passes = build().to(META), Passes(padding_mask=False, causal_attention=True)
    learner = CausalLearner(model, rows_at_once=rows_at_once, passes=passes, alignment=alignment_of(model))
    learner.example_count = 6
    draws = RoleBatches(pools, pad_id=0, seed=3)
    with HostWaits():
        # A method may read the weights when it starts.
        step = method.start(learner, draws, 9) if method else PlainStep(learner)
    meter = Meter()
    for place in range(2):
        learner.steps_taken = place
        with passes.running(model, META), fused_rotary(model), fused_projections(model), HostWaits() as waits:
            meter.add(step.backward(collate(rows(5, seed=7 + place), 0, [3, 0, 5, 1, 4])))
    return waits.seen


# A whole batch is what a piece is without a sum over pieces, which is no method's own: typical ones will do.
@pytest.mark.parametrize(
    ("name", "rows_at_once"),
    [
        *(pytest.param(name, None, marks=pytest.mark.slow) for name in sorted(TYPICAL)),
        *(pytest.param(name, 3, marks=[] if name in TYPICAL else pytest.mark.slow) for name in CUTTABLE),
    ],
)
def test_step_of_a_method_never_waits_for_the_device(name, rows_at_once, monkeypatch):
    assert set(waits_of(name, rows_at_once, monkeypatch)) <= KNOWN.get(name, set())


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: bool(tensor.any()),
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor.copy_(torch.zeros(3)),
        lambda tensor: torch.zeros(3).to(tensor.device),
        lambda tensor: torch.equal(tensor, tensor),
    ],
)
def test_what_makes_the_host_wait_is_counted(wait):
    with HostWaits() as waits:
        wait(torch.zeros(3, device=META))

    assert len(waits.seen) == 1


@pytest.mark.parametrize("select", [lambda tensor: tensor[tensor > 0], torch.nonzero])
def test_selection_by_values_is_counted(select):
    with HostWaits() as waits, pytest.raises((RuntimeError, AttributeError, TypeError)):
        raise TypeError(select(torch.zeros(3, device=META)))

    assert len(waits.seen) == 1


def test_logging_reads_the_device_once():
    meter = Meter()
    for _ in range(3):
        meter.add({"loss": torch.zeros((), device=META), "norm": torch.zeros((), device=META), "rows": 4.0})

    with HostWaits() as waits:
        means = meter.take()

    assert waits.seen == ["copy to the host"]
    assert means["rows"] == 4
    assert math.isclose(means["loss"], 0)
