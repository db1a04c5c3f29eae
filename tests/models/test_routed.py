"""Routed feed-forward blocks: the mixture by hand, and what it equals when experts or routers are alike."""

import json

import pytest
import torch
from torch.nn import Linear, Module

from harness.errors import ModelError
from harness.models import adapter, routed
from harness.models.adapter import FEED_FORWARD, Lora
from harness.models.loading import ModelRef, loaded_model
from harness.models.merge import merge, restore

IDS = torch.tensor([[1, 9, 17, 33, 5], [1, 8, 16, 32, 4]])
EXPERT = Lora(rank=2, alpha=4, targets=FEED_FORWARD)


class Block(Module):
    """A feed-forward block of width 1: ``gate(x) * up(x)`` goes through ``down``, which the base has as zero."""

    def __init__(self):
        super().__init__()
        for name, weight in zip(FEED_FORWARD, (1.0, 1.0, 0.0), strict=True):
            layer = Linear(1, 1, bias=False)
            layer.weight.data.fill_(weight)
            setattr(self, name, layer)
        self.act_fn = torch.nn.Identity()


def by_hand(logits, outputs, top_k):
    """A block whose experts return given numbers for the input 1, with a router of given logits for it."""
    tensors = {"router": torch.tensor(logits)[:, None]}
    for name in FEED_FORWARD:
        tensors[f"{name}.a"] = torch.ones(len(logits), 1, 1)
        tensors[f"{name}.b"] = torch.zeros(len(logits), 1, 1)
    # Halved, because the scale doubles it.
    tensors["down_proj.b"] = torch.tensor(outputs)[:, None, None] / 2
    return routed.RoutedBlock(Block(), tensors, routed.Shape(top_k=top_k, scale=2.0))


def test_largest_weights_of_the_router_are_renormalized():
    logits = torch.tensor([2.0, 1.0, 0.0])

    assert routed.top(logits, 3).tolist() == pytest.approx([0.66524, 0.24473, 0.09003], abs=1e-5)
    assert routed.top(logits, 2).tolist() == pytest.approx([0.73106, 0.26894, 0.0], abs=1e-5)


def test_block_returns_the_weighted_outputs_of_its_two_best_experts():
    block = by_hand([2.0, 1.0, 0.0], [1.0, 3.0, 100.0], top_k=2)

    assert block(torch.ones(1, 1, 1)).item() == pytest.approx(1.53788, abs=1e-5)


def test_equal_logits_over_all_experts_are_their_mean():
    block = by_hand([0.5, 0.5, 0.5], [1.0, 3.0, 8.0], top_k=3)

    assert block(torch.ones(1, 1, 1)).item() == pytest.approx(4.0)


@pytest.fixture
def start(tmp_path, save_adapter):
    """Write experts with the given seeds to a folder; a seed of None is an expert that changes nothing."""

    def write(*seeds, top_k=2, seed=0):
        folders = [
            save_adapter(f"expert-{index}", 0 if own is None else own, EXPERT, scale=0.0 if own is None else 0.2)
            for index, own in enumerate(seeds)
        ]
        routed.start(folders, top_k=top_k, seed=seed, out=tmp_path / "routed")
        return tmp_path / "routed"

    return write


def logits_of(model, folder):
    routed.install(model, folder)
    found = model(IDS).logits
    routed.remove(model)
    return found


def test_three_equal_experts_do_not_depend_on_the_router(make_model, start, save_adapter):
    first, second = (logits_of(make_model(), start(7, 7, 7, seed=seed)) for seed in (1, 2))
    alone = adapter.load(make_model(), save_adapter("alone", 7, EXPERT))(IDS).logits

    torch.testing.assert_close(first, second, rtol=0, atol=1e-6 * float(first.abs().max()))
    # The change is the one that the expert makes alone, scale included.
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


def test_router_matters_if_the_experts_differ(make_model, start):
    first, second = (logits_of(make_model(), start(7, 8, 9, seed=seed)) for seed in (1, 2))

    assert not torch.allclose(first, second, atol=1e-3)


def test_experts_that_change_nothing_are_the_base(make_model, start):
    model = make_model()
    expected = model(IDS).logits

    found = logits_of(model, start(None, None, None))

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_experts_on_a_base_of_half_precision_give_its_dtype(make_model, start):
    folder = start(7, 8, 9)
    model = make_model()
    expected = logits_of(model, folder)

    found = logits_of(model.to(torch.bfloat16), folder)

    assert found.dtype is torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


def test_all_experts_with_equal_logits_give_the_mean_of_their_blocks(make_model, start, tmp_path):
    model, folder = make_model(), start(7, 8, 9, top_k=3)
    block, hidden = model.model.layers[1].mlp, torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    single = []
    for index in range(3):
        merged = merge(model, tmp_path / f"expert-{index}")
        single.append(block(hidden))
        restore(model, merged)

    routed.install(model, folder)
    mixture = model.model.layers[1].mlp
    mixture.router.weight.data.zero_()

    torch.testing.assert_close(mixture(hidden), sum(single) / 3, rtol=1e-4, atol=1e-5)


def test_removing_leaves_the_model_as_it_was(make_model, start):
    model = make_model()
    names = dict(model.named_parameters())
    before = {name: value.clone() for name, value in names.items()}

    routed.install(model, start(7, 8, 9))
    inside = set(dict(model.named_parameters()))
    routed.remove(model)

    assert inside > before.keys(), "the shared matrices keep their names"
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is names[name] and torch.equal(after[name], before[name]) for name in before)


def test_stored_experts_are_read_as_they_were_written(make_model, start, tmp_path):
    folder = start(7, 8, 9)
    model = make_model()
    routed.install(model, folder)

    routed.save(adapter.attach(model, Lora(rank=2), seed=0), tmp_path / "again")

    for name in (routed.WEIGHTS, routed.SETTINGS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((folder / routed.SETTINGS).read_text()) == {"scale": 2.0, "top_k": 2}


def test_adapter_on_the_shared_matrices_is_attached_and_merged_like_in_any_model(
    tmp_path, save_base, start, save_adapter
):
    base, folder, attack = save_base(), start(7, 8, 9), save_adapter("attack", 3, Lora(rank=4, targets=FEED_FORWARD))
    memory = {}

    def logits(**parts):
        with loaded_model(ModelRef(base_key="base", base=base, **parts), memory) as loaded, torch.no_grad():
            return loaded.model(IDS).logits

    plain, mixed = logits(), logits(routed=folder)
    attached, merged = logits(routed=folder, adapter=attack), logits(routed=folder, merged=(attack,))

    assert not torch.allclose(plain, mixed, atol=1e-3)
    assert not torch.allclose(mixed, attached, atol=1e-3)
    torch.testing.assert_close(attached, merged, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(), plain), "nothing is left in the base that stays in memory"


@pytest.mark.parametrize(
    ("lora", "words"),
    [(Lora(rank=2, alpha=4, targets=("q_proj",)), "gate_proj"), (Lora(rank=4, alpha=4, targets=FEED_FORWARD), "rank")],
)
def test_adapter_of_another_shape_cannot_be_an_expert(tmp_path, save_adapter, lora, words):
    folders = [save_adapter("one", 1, EXPERT), save_adapter("other", 2, lora)]

    with pytest.raises(ModelError, match=f"other cannot be an expert.*{words}"):
        routed.start(folders, top_k=2, seed=0, out=tmp_path / "routed")


def test_experts_of_another_base_do_not_fit(make_model, start):
    folder = start(7, 8, 9)

    with pytest.raises(ModelError, match="do not fit the model"):
        routed.install(make_model(intermediate_size=48), folder)
    with pytest.raises(ModelError, match="no readable experts"):
        routed.install(make_model(), folder.parent)
