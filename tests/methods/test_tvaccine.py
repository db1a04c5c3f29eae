"""T-Vaccine by hand: two layers, e1 = a1 x, y1 = r1 e1, e2 = a2 y1, y2 = r2 e2; f = h = |y2|^2 / 2.

a1 = 1, r1 = 2, a2 = r2 = 1, x = (3, 4): e1 = (3, 4), y1 = e2 = y2 = (6, 8), f = 50. G2 = y2 has length 10 and
G1 = r1 G2 has length 20, so the probabilities are 2/3 and 1/3. With layer 2 drawn and rho 2.5 the shift is (1.5, 2):
e2' = y2' = (7.5, 10), f' = 78.125; df'/dr2 = y2'.e2' = 156.25, df'/da2 = y2'.y1 = 125, df'/dr1 = y2'.e1 = 62.5.
a1, in the attention of the layer that was not drawn, has no gradient; r1, outside of it, has.
"""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from quadratic import Layer, TinyLearner, half_square
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from harness.corpora.examples import Role
from harness.defenses.tvaccine import TVaccine
from harness.engine.seeding import derive
from harness.models import recompute
from harness.training.learner import CausalLearner

ROWS = torch.tensor([3.0, 4.0])
LOSS = {kind: lambda model: half_square(model(ROWS)) for kind in ("alignment", "harmful")}


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(1.0, 2.0), Layer(1.0, 1.0)])

    def get_decoder(self):
        return self

    def forward(self, rows):
        for layer in self.layers:
            rows = layer(rows)
        return rows


class BatchProvider:
    """Gives one harmful batch, and counts."""

    def __init__(self, harmful=None, seed=0):
        self.roles = []
        self._harmful = harmful or {"kind": "harmful"}
        self._seed = seed

    def derive(self, *names):
        return derive(self._seed, *names)

    def next(self, role):
        self.roles.append(role)
        return self._harmful


def llama(layers=6):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, vocab_size=61
    )
    adapted = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(config), adapted).train()


def text(rows=3, length=20):
    ids = torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :9] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def at(step, drawn, layers):
    """Put a run where no probe and no draw is due."""
    step.load_state_dict({"steps": 1, "probabilities": [1 / layers] * layers, "drawn": drawn})
    return step


def test_tvaccine_step_on_two_layers_writes_the_gradient_computed_by_hand():
    model = Tower()
    step = at(TVaccine(rho=2.5, layers=1).start(TinyLearner(model, LOSS), BatchProvider(), 1), [1], 2)
    written = []
    step._learner.set_gradient = written.extend

    metrics = step.backward({"kind": "alignment"})

    names = [name for name, _ in model.named_parameters()]
    found = dict(zip(names, (None if part is None else part.item() for part in written), strict=True))
    assert found == {
        "layers.0.readout": 62.5,
        "layers.0.self_attn.weight": None,
        "layers.1.readout": 156.25,
        "layers.1.self_attn.weight": 125.0,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"loss": 50.0, "perturbed_loss": 78.125, "activation_gradient_norm": 10.0, "frozen": 1}
    )
    assert model(ROWS).tolist() == [6.0, 8.0], "nothing is left on the model"


def test_tvaccine_probe_gives_the_probabilities_computed_by_hand():
    model, batches = Tower(), BatchProvider()
    step = TVaccine(layers=2).start(TinyLearner(model, LOSS), batches, 1)

    step.backward({"kind": "alignment"})

    assert step.state_dict()["probabilities"] == pytest.approx([2 / 3, 1 / 3])
    assert step.state_dict()["drawn"] == [0, 1]
    assert batches.roles == [Role.HARMFUL]


def test_tvaccine_draws_layers_without_replacement_by_their_probabilities():
    counted = Counter()
    for seed in range(2000):
        step = TVaccine(layers=2).start(TinyLearner(Tower(), LOSS), BatchProvider(seed=seed), 1)
        step._probabilities = [0.6, 0.3, 0.1]
        counted.update([tuple(step._sample_layers())])

    # Ordered draws: P(0, 1) = 0.6 * 0.3/0.4 + 0.3 * 0.6/0.7, and so on.
    expected = {(0, 1): 0.45 + 0.18 / 0.7, (0, 2): 0.15 + 0.06 / 0.9, (1, 2): 0.03 / 0.7 + 0.03 / 0.9}
    assert {pair: count / 2000 for pair, count in counted.items()} == pytest.approx(expected, abs=0.04)


def test_tvaccine_probes_and_draws_on_their_own_optimizer_steps_however_batches_are_cut():
    batches = BatchProvider(text(rows=1))
    step = TVaccine(layers=2, draw_every=2, probe_every=4).start(CausalLearner(llama(), rows_at_once=2), batches, 9)
    drawn, probes = [], []

    for _ in range(9):
        step.backward(text())
        drawn.append(step.state_dict()["drawn"])
        probes.append(len(batches.roles))

    assert probes == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert all(drawn[place] == drawn[place + 1] for place in (0, 2, 4, 6))
    assert len({tuple(each) for each in drawn}) > 1


def test_tvaccine_leaves_attention_adapters_of_other_layers_out_of_the_step():
    model = llama()
    step = at(TVaccine(layers=2).start(CausalLearner(model), BatchProvider(), 1), [1, 4], 6)

    step.backward(text())

    trained = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    frozen = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert len(frozen) == 4 * 4
    assert all("self_attn" in name and not any(f"layers.{place}." in name for place in (1, 4)) for name in frozen)
    assert sum("up_proj" in name for name in trained) == 12


def saved_bytes(drawn):
    """Return how many bytes of activations a step keeps for its backward passes; each storage counts once."""
    model = llama()
    step = at(TVaccine(layers=len(drawn)).start(CausalLearner(model), BatchProvider(), 1), drawn, 6)
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step.backward(text(rows=4, length=60))
    return sum(kept.values())


def test_tvaccine_keeps_fewer_activations_than_vaccine():
    everything, few = saved_bytes([0, 1, 2, 3, 4, 5]), saved_bytes([1, 4])

    assert few < 0.5 * everything


def test_tvaccine_gradient_is_the_same_with_and_without_recomputation(monkeypatch):
    model = llama()

    def gradients():
        model.zero_grad()
        at(TVaccine(layers=2).start(CausalLearner(model), BatchProvider(), 1), [1, 4], 6).backward(text())
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    recomputing = gradients()
    monkeypatch.setattr(recompute, "recomputed", lambda layers: nullcontext(list(layers)))
    keeping = gradients()

    assert len(recomputing) == len(keeping) == 20
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(recomputing, keeping, strict=True))


def test_tvaccine_step_that_fails_leaves_no_trainable_frozen():
    model = llama()
    step = at(TVaccine(layers=2).start(CausalLearner(model), BatchProvider(), 1), [1, 4], 6)

    with pytest.raises(KeyError):
        step.backward({"input_ids": text()["input_ids"]})

    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_recomputed_layers_have_their_own_forward_again_even_after_an_error():
    layers = list(llama().get_decoder().layers)
    own = layers[0].forward
    layers[1].forward = own

    def fail():
        with recompute.recomputed(layers):
            assert layers[0].forward != own
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert "forward" not in layers[0].__dict__
    assert layers[1].__dict__["forward"] == own


def test_tvaccine_settings_out_of_range_are_all_reported():
    settings = TVaccine(rho=0, layers=0, draw_every=0, probe_every=0, probe_rows=0, probe_batch_size=0)

    assert [problem.path for problem in settings.problems()] == [
        "rho",
        "layers",
        "draw_every",
        "probe_every",
        "probe_rows",
        "probe_batch_size",
    ]
