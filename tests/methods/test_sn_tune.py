"""SN-Tune by hand: one layer of two neurons per projection; the states of the two tokens are the basis vectors.

With W_v = diag(3, 1) the columns of V have the norms 3 and 1, those of W_o 1 and 2: importances 3 and 2. With W_up the
identity the columns of a have the norm 1, those of W_down 2 and 3: importances 2 and 3. Queries and keys are zero and
matter nowhere. A threshold of 2.5 keeps the first value neuron and the second of the feed-forward block.

Attention of two tokens, q_2 = (1, 1), k_1 = (1, 0), k_2 = (0, 2), size 2: the scores (1, 2) / sqrt(2) give the second
token the weights (0.3302, 0.6698); without the first feature (0, 2) / sqrt(2) give (0.1956, 0.8044), without the second
(1, 0) / sqrt(2) give (0.6698, 0.3302). The changes are 0.1347 sqrt(2) and 0.3395 sqrt(2). The first token sees itself
alone, whatever is removed.
"""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from states import batch
from torch import nn
from user_learner import CutLearner, Safety

from harness.corpora.examples import Role
from harness.defenses.sn_tune import SNTune
from harness.defenses.sn_tune.neurons import Heads, Neurons, attention_importances
from harness.errors import ModelError
from harness.mechanisms.masked_parameters import MaskedParameters

MATRICES = {
    "q_proj": [[0.0, 0.0], [0.0, 0.0]],
    "k_proj": [[0.0, 0.0], [0.0, 0.0]],
    "v_proj": [[3.0, 0.0], [0.0, 1.0]],
    "o_proj": [[1.0, 0.0], [0.0, 2.0]],
    "up_proj": [[1.0, 0.0], [0.0, 1.0]],
    "down_proj": [[2.0, 0.0], [0.0, 3.0]],
}


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        for name, values in MATRICES.items():
            layer = nn.Linear(2, 2, bias=False)
            layer.weight = nn.Parameter(torch.tensor(values), requires_grad=False)
            self.add_module(name, layer)

    def forward(self, states):
        self.q_proj(states), self.k_proj(states)
        return self.o_proj(self.v_proj(states)) + self.down_proj(self.up_proj(states))


class Model(nn.Module):
    """Token i is the i-th basis vector."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer()])

    def get_decoder(self):
        return self

    def forward(self, given):
        return self.layers[0](torch.eye(2)[given["input_ids"].clamp(min=0)])


class Learner(CutLearner):
    def __init__(self, targets):
        module = inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=list(targets)), Model())
        module.config = SimpleNamespace(num_attention_heads=1)
        super().__init__(module)
        self.trainables = [parameter for parameter in module.parameters() if parameter.requires_grad]


def queries(*tokens):
    """Return one query of these tokens, and an answer that is none of it."""
    given = batch((len(tokens), 2))
    given["input_ids"] = torch.tensor([[*tokens, 1, 1]])
    return given


BOTH = queries(0, 1)
SHORT = {"detection_rows": 1, "detection_batch_size": 1, "threshold": 2.5}


def masks(step, learner):
    """Return which entries each trainable parameter trains, by the last parts of its name."""
    names = {id(parameter): name for name, parameter in learner.module.named_parameters()}
    found = {}
    for parameter, part in zip(learner.trainables, step._masked.gradient(ones(learner)), strict=True):
        _, _, projection, factor, *_ = names[id(parameter)].split(".")
        found[projection, factor] = None if part is None else part.tolist()
    return found


def ones(learner):
    return [torch.ones_like(parameter) for parameter in learner.trainables]


@pytest.mark.parametrize(
    ("query", "values", "hidden"),
    [(queries(0, 1), [3, 2], [2, 3]), (queries(0), [3, 0], [2, 0]), (queries(1, 1), [0, 2 * 2**0.5], [0, 3 * 2**0.5])],
)
def test_neuron_is_important_where_its_importance_reaches_the_threshold(query, values, hidden):
    for threshold in (1.0, 1.9, 2.5, 3.1):
        counts, asked = Neurons(Learner(["v_proj"])).counts(
            query, whole=False, threshold=threshold, attention_share=1, mlp_share=1
        )

        assert float(asked) == 1
        assert counts[0, "v_proj"].tolist() == [float(value >= threshold) for value in values]
        assert counts[0, "up_proj"].tolist() == [float(value >= threshold) for value in hidden]
        assert counts[0, "q_proj"].tolist() == counts[0, "k_proj"].tolist() == [0, 0]


def test_rows_of_queries_and_keys_matter_by_what_they_change_in_attention():
    q, k = torch.tensor([[5.0, 7.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])

    of_queries, of_keys = attention_importances(q, k, Heads(1, 1, 2))

    assert of_queries.tolist() == of_keys.tolist() == pytest.approx([0.1904489, 0.4801593], rel=1e-5)
    twice, shared = attention_importances(torch.cat([q, q], dim=1), k, Heads(2, 1, 2))
    assert twice.tolist() == pytest.approx([0.1904489, 0.4801593] * 2, rel=1e-5)
    assert shared.tolist() == pytest.approx([2**0.5 * 0.1904489, 2**0.5 * 0.4801593], rel=1e-5)


def test_safety_neurons_are_those_of_every_query():
    settings = SNTune(**SHORT | {"detection_rows": 2, "threshold": 1.9})
    learner = Learner(["v_proj"])

    # {0, 1} for both tokens, {0} for the first alone.
    step = settings.start(learner, Safety(BOTH, queries(0)), 1)

    assert masks(step, learner) == {("v_proj", "lora_A"): [[1, 1]], ("v_proj", "lora_B"): [[1], [0]]}
    assert float(step._tuned) == 0.5


def test_shares_take_the_highest_importances_of_each_query():
    learner = Learner(["v_proj", "up_proj"])
    settings = SNTune(**SHORT | {"threshold": None, "attention_share": 0.5, "mlp_share": 0.2})

    step = settings.start(learner, Safety(BOTH), 1)

    assert masks(step, learner)["v_proj", "lora_B"] == [[1], [0]]
    assert masks(step, learner)["up_proj", "lora_B"] == [[0], [1]]


def test_down_projection_is_tuned_in_columns_and_other_modules_not_at_all():
    learner = Learner(["down_proj", "o_proj"])
    step = SNTune(**SHORT).start(learner, Safety(BOTH), 1)

    assert masks(step, learner) == {
        ("down_proj", "lora_A"): [[0, 1]],
        ("down_proj", "lora_B"): [[1], [1]],
        ("o_proj", "lora_A"): None,
        ("o_proj", "lora_B"): None,
    }
    first = learner.module.layers[0].down_proj.lora_A["default"].weight
    (place,) = [place for place, weight in enumerate(learner.trainables) if weight is first]
    assert torch.equal(step.initial()[place], first.detach() * torch.tensor([[0.0, 1.0]]))


def test_robust_tuning_leaves_out_what_matters_for_general_text():
    learner, batches = Learner(["v_proj", "up_proj"]), Safety(BOTH, BOTH)
    all_of_them = {"threshold": None, "attention_share": 1.0, "mlp_share": 1.0, "foundation_rows": 1}

    with pytest.raises(ModelError, match="no neuron that is important for every query"):
        SNTune(**SHORT | all_of_them).start(learner, batches, 1)

    assert batches.roles == [Role.HARMFUL, Role.BENIGN]
    # Importances of the prompt (3 sqrt(2), 2 sqrt(3)) and (2 sqrt(2), 3 sqrt(3)); of the text, with its answer of two
    # more tokens, (0, 2 sqrt(3)) and (0, 3 sqrt(3)).
    both = Safety(queries(0, 0, 1, 1, 1), queries(1))
    step = SNTune(**SHORT | {"threshold": 3.5, "foundation_rows": 1}).start(learner, both, 1)
    assert masks(step, learner)["v_proj", "lora_B"] == [[1], [0]]
    assert masks(step, learner)["up_proj", "lora_B"] == [[0], [0]]


def test_masked_entries_survive_a_step_of_adamw_with_decay_bit_for_bit():
    learner = SimpleNamespace(trainables=[nn.Parameter(torch.tensor([[1.1, 2.3], [3.7, 4.9]]))])
    (weight,) = learner.trainables
    kept = [weight.detach().clone()]
    masked = MaskedParameters(learner, [torch.tensor([[True], [False]])], kept)
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)

    for _ in range(3):
        (weight.grad,) = masked.gradient([torch.ones(2, 2)])
        optimizer.step()
        moved = weight.detach().clone()
        masked.restore()

    assert torch.equal(weight[1], kept[0][1])
    assert not bool((moved[1] == kept[0][1]).any()), "decay moves what is not put back"
    assert not bool((weight[0] == kept[0][0]).any())
    assert not optimizer.state[weight]["exp_avg_sq"][1].any()


def test_model_without_the_projections_is_refused():
    learner = Learner(["v_proj"])
    del learner.module.layers[0].down_proj

    with pytest.raises(ModelError, match="`down_proj`; expected a decoder with q_proj"):
        SNTune(**SHORT).start(learner, Safety(BOTH), 1)
    with pytest.raises(ModelError, match="none has an adapter"):
        SNTune(**SHORT).start(Learner(["o_proj"]), Safety(BOTH), 1)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in SNTune(detection_rows=15).problems()] == ["detection_rows"]
    found = SNTune(attention_share=2, threshold=0.0, foundation_rows=0).problems()
    assert [problem.path for problem in found] == ["foundation_rows", "attention_share", "threshold"]
    assert [need.role for need in SNTune(foundation_rows=10).needs] == [Role.HARMFUL, Role.BENIGN]
