"""Random Vaccine by hand: one layer, y = r e with e = a x; f = |y|^2 / 2; a = 1, r = 2, x = 3 and 4 at two positions.

Noise Z = (3, -4) has length 5, so with rho 2.5 the shift is (1.5, -2): e' = (4.5, 2), y' = (9, 4), f' = 48.5,
df'/dr = y'.e' = 48.5, df'/da = r y'.x = 2 (27 + 16) = 86. With the variance rho = 4 the shift is 2 Z = (6, -8):
e' = (9, -4), y' = (18, -8), f' = 194, df'/dr = 194, df'/da = 2 (54 - 32) = 44.
"""

import pytest
import torch
from quadratic import Decoder, TinyLearner, half_square

from harness.defenses.random_vaccine import RandomVaccine
from harness.mechanisms import row_noise
from harness.mechanisms.row_noise import gaussian, real_positions

CPU = torch.device("cpu")
ROWS = torch.tensor([[[3.0], [4.0]]])
LOSSES = {"alignment": lambda model: half_square(model(ROWS))}
BATCH = {"kind": "alignment", "attention_mask": torch.ones(1, 2), "labels": torch.tensor([[-100, 1]])}


class Seeds:
    """Gives seeds, and keeps what they were asked for."""

    def derive(self, *names):
        return 5


def gradient_of(model):
    (layer,) = model.layers
    return layer.self_attn.weight.grad.item(), layer.readout.grad.item()


@pytest.mark.parametrize(
    ("settings", "expected", "loss", "norm"),
    [
        (RandomVaccine(rho=2.5), (86.0, 48.5), 48.5, 2.5),
        (RandomVaccine(rho=4, scale="variance"), (44.0, 194.0), 194.0, 10.0),
    ],
)
def test_random_vaccine_step_writes_the_gradient_computed_by_hand(settings, expected, loss, norm, monkeypatch):
    monkeypatch.setattr(row_noise, "gaussian", lambda *_, **__: torch.tensor([[[[3.0], [-4.0]]]]))
    model = Decoder(1.0, 2.0)
    step = settings.start(TinyLearner(model, LOSSES), Seeds(), 1)

    metrics = step.backward(BATCH)

    assert gradient_of(model) == pytest.approx(expected)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"loss": loss, "perturbation_norm": norm}
    )
    assert model(ROWS).flatten().tolist() == [6.0, 8.0], "the forward pass is unperturbed again"


def test_random_vaccine_draws_anew_at_every_step_and_again_after_a_resumption():
    model = Decoder(1.0, 2.0)
    step = RandomVaccine().start(TinyLearner(model, LOSSES), Seeds(), 1)
    step.backward(BATCH)
    first, state = gradient_of(model), step.state_dict()
    step.backward(BATCH)
    second = gradient_of(model)
    resumed = RandomVaccine().start(TinyLearner(model, LOSSES), Seeds(), 1)
    resumed.load_state_dict(state)

    resumed.backward(BATCH)

    assert first != second
    assert gradient_of(model) == second


def test_gaussian_noise_is_standard_normal_where_there_is_text_and_nowhere_else():
    positions = torch.ones(8, 30, dtype=torch.bool)
    positions[1, 20:] = False
    positions[2] = False

    drawn = gaussian(positions, layers=3, width=16, seed=1, device=CPU)

    inside = drawn[:, positions]
    assert drawn.shape == (3, 8, 30, 16)
    assert float(drawn[:, ~positions].abs().max()) == 0.0
    assert float(inside.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(inside.std()) == pytest.approx(1.0, abs=0.03)
    assert len(inside.unique()) == inside.numel(), "rows and layers have noise of their own"


def test_gaussian_noise_of_a_row_does_not_depend_on_how_rows_are_shared_or_padded(monkeypatch):
    positions = torch.ones(5, 7, dtype=torch.bool)
    positions[3, 4:] = False
    whole = gaussian(positions, layers=2, width=3, seed=1, device=CPU)
    monkeypatch.setattr(row_noise, "world_size", lambda: 2)
    monkeypatch.setattr(row_noise, "rank", lambda: 1)

    share = gaussian(
        torch.nn.functional.pad(positions[1::2], (0, 2)), layers=2, width=3, seed=1, device=torch.device("cpu")
    )

    assert torch.equal(share[:, :, :7], whole[:, 1::2])


def test_real_positions_leave_out_padding_and_rows_that_only_fill_a_share():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    labels = torch.tensor([[-100, -100, 4], [-100, 5, -100], [-100, -100, -100]])

    found = real_positions({"attention_mask": mask, "labels": labels})

    assert found.int().tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_random_vaccine_settings_out_of_range_are_reported():
    assert [problem.path for problem in RandomVaccine(rho=0).problems()] == ["rho"]
