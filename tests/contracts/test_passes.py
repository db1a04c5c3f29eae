"""The passes of a GPU (compiled layers, bucketed lengths, no padding mask) give every method the plain gradients."""

import os
from dataclasses import replace
from functools import cache

import pytest
import torch
from test_train_methods import CUTTABLE, TYPICAL, assert_same_steps, build, stepped, whole_steps
from torch._dynamo.backends.debugging import aot_eager

from harness.models.attention import causal_attention, needs_no_mask
from harness.models.compiled import compiled_layers, use_cache
from harness.models.decoder import attention_blocks, layers, outputs
from harness.training.budget import Precision
from harness.training.learner import CausalLearner
from harness.training.passes import Passes, buckets, passes_on, usual_rows

SHORTER = Passes(padding_mask=False, causal_attention=True, lengths=(5, 20))
"""One bucket shorter than most micro-batches, one longer than all."""


HOOKED = {
    "ldifs",
    "ldifs with its gate",
    "random vaccine of a variance",
    "random_vaccine",
    "salora",
    "triplet as published",
    "tvaccine",
    "tvaccine in one layer",
    "vaccine",
}
"""Methods whose passes all have hooks inside of the decoder."""
SAME_HOOKS = {"ldifs with its gate", "random vaccine of a variance", "triplet as published", "tvaccine"}
"""Methods of these whose hooks are those of the method with its defaults, or (T-Vaccine in all layers) of Vaccine."""
WATCHING = {"repnoise in force"}
"""Methods that read outputs inside of the decoder in some of their passes. TAR reads some of what this one reads,
without and with a gradient as LDIFS does, and SBR what is behind the last layer."""


CASES = [
    *((name, cut) for name in sorted(TYPICAL) for cut in (None, 2)),
    *(pytest.param(name, 2, marks=pytest.mark.slow) for name in CUTTABLE if name not in TYPICAL),
]
"""Methods, and rows at once: pieces of two rows and one, and for typical methods the whole batch, a single piece."""


class Compiler:
    """Stands in for a compiler: runs the graph with PyTorch's operators, and counts what it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return aot_eager(module, inputs)


# Captured passes pad to the same buckets, with every method.
@pytest.mark.parametrize(("name", "rows_at_once"), [(name, cut) for name in sorted(TYPICAL) for cut in (None, 2)])
def test_padding_to_buckets_without_a_mask_changes_gradients_by_rounding_only(name, rows_at_once):
    assert_same_steps(stepped(name, rows_at_once, SHORTER), whole_steps(name))


# All others run plain passes through the decoder, or have the hooks of one of these with other settings of the loss.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HOOKED - SAME_HOOKS | WATCHING | {"booster", "plain"}))
def test_compiled_layers_change_gradients_by_rounding_only(name):
    compiler = Compiler()
    passes = Passes(padding_mask=False, causal_attention=True, lengths=(20,), backend=compiler, usual_rows=range(100))

    assert_same_steps(stepped(name, None, passes), whole_steps(name))
    assert compiler.graphs


class Launches:
    """Stands in for the capture of kernels on a GPU: runs what was captured, and counts how often."""

    def __init__(self, error=None):
        self.captured = self.launched = 0
        self._error = error

    def __call__(self, run):
        if self._error:
            raise self._error
        run()
        self.captured += 1

        def launch():
            self.launched += 1
            run()

        return launch


CAPTURED = replace(SHORTER, captured=True, fused=True, usual_rows=range(100))


@pytest.mark.parametrize(("name", "rows_at_once"), CASES)
def test_captured_passes_change_gradients_by_rounding_only(name, rows_at_once, monkeypatch):
    monkeypatch.setattr("harness.models.captured.EAGER_PASSES", 0)
    launches = Launches()

    found = stepped(name, rows_at_once, CAPTURED, lambda _: launches)

    assert_same_steps(found, whole_steps(name))
    assert bool(launches.launched) == (name not in HOOKED)


def gradient(model, shape, **options):
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % 50
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return CausalLearner(model, **options).gradient(batch)[1]


@pytest.mark.slow
def test_compiled_layers_compute_what_a_dora_adapter_does():
    model, compiler = build(targets="all-linear", variant="dora"), Compiler()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = gradient(model, (3, 8))

    with compiled_layers(model, compiler, {3}):
        found = gradient(model, (3, 8))

    assert compiler.graphs
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


@cache
def counted():
    """Return how many graphs are compiled for what, one after another."""
    model, compiler, found = build(), Compiler(), {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    blocks = dict(enumerate(attention_blocks(model)))
    with causal_attention(model), compiled_layers(model, compiler, {3}):
        for what, shape in {"first": (3, 8), "again": (3, 8), "other length": (3, 16), "other rows": (2, 8)}.items():
            before = compiler.graphs
            gradient(model, shape)
            found[what] = compiler.graphs - before
        before = compiler.graphs
        with outputs(blocks, lambda _, output: output * 2):
            found["hooked gradient"] = gradient(model, (3, 8))
        found["hooked"] = compiler.graphs - before
    found["breaks"] = dict(torch._dynamo.utils.counters["graph_break"])
    with outputs(blocks, lambda _, output: output * 2):
        found["plain hooked gradient"] = gradient(model, (3, 8))
    return found


@pytest.mark.slow
def test_layers_share_one_piece_of_code_and_nothing_is_compiled_twice():
    found = counted()

    # The input of the first layer has no gradient, that of the others has.
    assert found["first"] == found["other length"] == 2
    assert found["again"] == found["other rows"] == 0
    assert found["breaks"] == {}


@pytest.mark.slow
def test_layer_with_hooks_inside_is_compiled_in_parts_and_heeds_them():
    found = counted()

    # Of each kind of layer: attention, feed-forward and the two norms, which share their code.
    assert 0 < found["hooked"] <= 8
    for ours, plain in zip(found["hooked gradient"], found["plain hooked gradient"], strict=True):
        torch.testing.assert_close(ours, plain)


def test_compiled_layers_leave_the_model_as_it_was():
    model = build()

    with pytest.raises(RuntimeError, match="inside"), compiled_layers(model, Compiler(), {3}):
        raise RuntimeError("inside")

    assert not any("forward" in layer.__dict__ for layer in layers(model))


def test_buckets_are_few_and_add_an_eighth_at_most():
    for longest in (1, 8, 50, 200, 512, 1000):
        lengths = buckets(longest)
        passes = Passes(lengths=lengths)
        widths = [passes.width(time) for time in range(1, longest + 1)]

        assert len(lengths) <= 8
        assert all(0 <= width - time < max(longest / 8, 1) + 8 for time, width in enumerate(widths, start=1))
        assert widths[-1] == longest
    assert buckets(200) == (32, 64, 96, 128, 160, 192, 200)
    assert Passes(lengths=(8,)).width(9) == 9


def test_rows_are_usual_if_full_batches_have_them():
    assert usual_rows({10, 4}, None) == {10, 4}
    assert usual_rows({10, 4}, 4) == {4, 2}
    assert usual_rows({10}, 20) == {10}


def test_compiler_cache_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)

    use_cache(tmp_path / "compiled")

    (own,) = (tmp_path / "compiled").iterdir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(own)
    assert own.stat().st_mode & 0o077 == 0


def test_compiler_cache_that_others_can_write_is_not_used(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / str(os.getuid())).mkdir()
    (tmp_path / str(os.getuid())).chmod(0o777)

    use_cache(tmp_path)

    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_passes_of_a_cpu_are_plain_and_tell_nothing():
    passes = passes_on(build(), "cpu", precision=Precision.TF32, longest=9, rows={4})

    assert passes == Passes()
    assert passes.facts() == {}


@pytest.mark.parametrize(
    ("options", "reason", "fused"),
    [({"sharded": True}, "sharded", False), ({"dropout": 0.1}, "dropout is active", True), ({}, "", False)],
)
def test_passes_of_a_gpu_state_their_switches(options, reason, fused, monkeypatch):
    monkeypatch.setattr("harness.models.compiled.compiler_problem", lambda _: "")
    monkeypatch.setattr("harness.training.passes.SMALL", 0)
    model = build(dropout=options.pop("dropout", 0.0))

    passes = passes_on(model, "cuda", precision=Precision.TF32, longest=40, rows={4}, **options)

    facts = passes.facts()
    assert reason in facts["not_compiled"]
    assert bool(facts["compiled"]) == bool(facts["lengths"]) == (not reason)
    assert (facts["tf32"], facts["autocast"], facts["attention"]) == (True, "", "sdpa")
    assert (facts["padding_mask"], facts["causal_attention"], facts["fused"]) == (False, True, fused)


def test_passes_of_a_small_model_are_captured_and_the_manifest_says_so(monkeypatch):
    def refused(run):
        raise RuntimeError("no")

    model, passes = build(), passes_on(build(), "cuda", precision=Precision.FLOAT32, longest=40, rows={4})
    monkeypatch.setattr("harness.models.captured.EAGER_PASSES", 0)
    found = []
    for record in (Launches(), refused):
        with passes.running(model, torch.device("cpu"), lambda _, record=record: record) as trouble:
            gradient(model, (4, 8), passes=passes)
        found.append(passes.facts(trouble()))

    assert [(facts["captured"], facts["not_captured"]) for facts in found] == [
        (True, ""),
        (False, "a pass cannot be captured (no)"),
    ]
    assert (found[0]["compiled"], found[0]["not_compiled"]) == ("", "passes of a small model are captured")
    assert found[0]["fused"]


def test_model_that_recomputes_its_activations_is_not_captured(monkeypatch):
    monkeypatch.setattr("harness.models.compiled.compiler_problem", lambda _: "")
    model = build()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})

    assert not passes_on(model, "cuda", precision=Precision.FLOAT32, longest=40, rows={4}).captured


def test_float32_products_are_restored():
    before = torch.get_float32_matmul_precision()

    with Passes(tf32=True).running(build(), torch.device("meta")):
        inside = torch.get_float32_matmul_precision()

    assert inside == "high"
    assert torch.get_float32_matmul_precision() == before


def test_masks_are_kept_where_a_window_is_shorter_than_the_examples():
    model = build()
    model.config.sliding_window = 16

    assert needs_no_mask(model, 16)
    assert not needs_no_mask(model, 17)
