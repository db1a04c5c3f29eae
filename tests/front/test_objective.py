import pytest

from harness.config.objective import Objective
from harness.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hs", 30.0),
        ("fa", 90.0),
        ("hs + 2*fa_loss", 50.0),
        ("hs - 0.5*fa_loss", 25.0),
        ("hs+1*fa_loss", 40.0),
        ("hs + 0.5*over_refusal", 38.0),
        ("hs + 2*fa_loss + 1*over_refusal", 66.0),
        ("hs + 1*over_refusal - 1*fa_loss", 36.0),
    ],
)
def test_objective_of_a_text_is_computed_as_written(text, value):
    assert Objective.parse(text).value({"hs": 30.0, "fa": 90.0, "over_refusal": 16.0}) == value


def test_objective_of_a_score_that_nobody_could_judge_is_none():
    assert Objective.parse("hs").value({"hs": None, "fa": 90.0}) is None
    assert Objective.parse("fa").value({"hs": None, "fa": 90.0}) == 90.0
    assert Objective.parse("hs + 1*over_refusal").value({"hs": 30.0, "fa": 90.0, "over_refusal": None}) is None


@pytest.mark.parametrize(
    "text", ["", "speed", "hs + fa", "2*hs", "hs + x*fa_loss", "over_refusal", "hs + 1*fa_loss + 1*fa_loss"]
)
def test_objective_of_another_text_is_refused(text):
    with pytest.raises(ConfigError, match="expected `hs`"):
        Objective.parse(text)
