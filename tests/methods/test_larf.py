"""LARF by hand: the state at a token is (1, 0) for token 1, (0, 1) for token 2 and (3, 4) for token 3.

One reference pair, a harmful answer that ends with token 1 and a refusal that ends with token 2: an example that ends
with 1, 2 or 3 has the score 1 - 0 = 1, 0 - 1 = -1 or 3/5 - 4/5 = -0.2. With a second pair the other way round, the two
differences of the third are -0.2 and 0.2, whose mean is 0 and whose largest is 0.2.
"""

import pytest
import torch
from torch import nn
from user_learner import CutLearner

from harness.corpora.batches import Pool
from harness.corpora.encode import Encoded
from harness.corpora.examples import Role
from harness.defenses.larf import LARF
from harness.errors import ModelError
from harness.training.choice import StageRows

STATES = torch.tensor([[9.0, -9.0], [1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])


class Layer(nn.Module):
    def forward(self, tokens):
        return STATES[tokens]


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList([Layer(), nn.Identity()])

    def get_decoder(self):
        return self

    def forward(self, batch):
        return self.layers[1](-self.layers[0](batch["input_ids"]))


def ending_in(token, length=3):
    """Return an example whose last token is the given one, among tokens of another state."""
    return Encoded([0] * (length - 1) + [token], [-100] * (length - 2) + [0, token])


def chosen(own, pairs=((1, 2),), **settings):
    pool = Pool([ending_in(u) for u, _ in pairs], 1, partners=[ending_in(s, 5) for _, s in pairs])
    given = StageRows(own, {Role.HARMFUL: pool}, batch_size=3, seed=0, pad_id=0)
    learner = CutLearner(Decoder())
    return LARF(layer=1, **settings).choose(learner, given, None)


def test_example_that_looks_harmful_is_dropped_and_the_others_stay_in_order():
    own = [ending_in(2, length) for length in (3, 4, 5, 3, 4, 5, 3, 4, 5)] + [ending_in(1)]

    found = chosen(own)

    assert found.rows == list(enumerate(own[:9]))
    assert found.facts == {"layer": 1, "lowest_dropped_score": pytest.approx(1)}


@pytest.mark.parametrize(
    ("pairs", "top", "score"), [([(1, 2)], None, -0.2), ([(1, 2), (2, 1)], None, 0), ([(1, 2), (2, 1)], 1, 0.2)]
)
def test_score_is_the_mean_of_the_largest_differences(pairs, top, score):
    found = chosen([ending_in(3), ending_in(3)], pairs, top=top, share=0.5)

    # Of equal scores the first is dropped.
    assert [place for place, _ in found.rows] == [1]
    assert found.facts["lowest_dropped_score"] == pytest.approx(score, abs=1e-6)


def test_highest_scores_are_dropped_wherever_they_are():
    own = [ending_in(token) for token in (3, 1, 2, 1, 3)]

    assert [place for place, _ in chosen(own, share=0.4).rows] == [0, 2, 4]
    assert [place for place, _ in chosen(own, share=0.6).rows] == [2, 4]
    assert len(chosen(own, share=0).rows) == 5


def test_layer_is_a_share_of_the_depth_unless_it_is_given():
    given = StageRows(
        [ending_in(1)], {Role.HARMFUL: Pool([ending_in(1)], 1, [ending_in(2)])}, batch_size=3, seed=0, pad_id=0
    )

    assert LARF().choose(CutLearner(Decoder()), given, None).facts["layer"] == 1
    with pytest.raises(ModelError, match="no layer 3"):
        LARF(layer=3).choose(CutLearner(Decoder()), given, None)


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in LARF(share=1, layer=0, references=0).problems()] == [
        "share",
        "layer",
        "references",
    ]
    assert [problem.path for problem in LARF(references=5, top=6).problems()] == ["top"]
