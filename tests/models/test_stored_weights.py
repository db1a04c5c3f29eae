"""Stored weights: the smallest exact form of each, whatever changed; sizes counted by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import ModelError
from harness.models.stored_weights import INDEX, apply, write


class Model(torch.nn.Module):
    """Weights whose entries are easy to count."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, entries in {"same": 16, "few": 20, "all": 12}.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(entries, generator=draw).to(dtype)))


def base_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(model):
    """Cast to float32, as in training; change three of twenty entries of one weight, and all of another."""
    model.float()
    with torch.no_grad():
        model.few[[0, 9, 19]] += 1.0
        model.all += 1.0
    return model


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_weights_are_stored_in_the_smallest_exact_form_and_read_back(dtype, width, tmp_path):
    base = base_of(Model(dtype))
    expected = {name: value.to(dtype) for name, value in base_of(trained(Model(dtype))).items()}

    facts = write(base_of(trained(Model(dtype))), base, tmp_path)

    # Twenty bits take three bytes; of the third weight the bits would come on top of all its values.
    assert facts["bytes"] == 3 + 3 * width + 12 * width
    assert facts["whole_bytes"] == 48 * width
    assert facts["changed"] == 15 / 48
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == {"few:mask", "few:values", "all"}
    assert stored["few:mask"].tolist() == [0b10000000, 0b01000000, 0b00010000]
    fresh = Model(dtype)
    apply(fresh, tmp_path)
    assert all(torch.equal(fresh.get_parameter(name), value) for name, value in expected.items())


def test_rounding_to_the_format_of_the_base_is_reported(tmp_path):
    base = {"same": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}
    model = torch.nn.Module()
    # Half a unit in the last place of 1 is 2**-8: the first change is kept as 2**-7, the second is lost.
    model.same = torch.nn.Parameter(torch.tensor([1.0 + 2**-7, 2.0 + 2**-8]))

    facts = write(base_of(model), base, tmp_path)

    assert facts["changed"] == 0.5
    assert facts["lost"] == pytest.approx((2**-16 / (2**-14 + 2**-16)) ** 0.5)


def test_model_that_did_not_change_takes_no_bytes(tmp_path):
    model = Model()

    assert write(base_of(model), base_of(model), tmp_path)["bytes"] == 0
    apply(model, tmp_path)
    assert json.loads((tmp_path / INDEX).read_text())["weight_map"] == {}


@pytest.mark.parametrize("harm", ["no index", "no shard", "another model"])
def test_weights_that_do_not_fit_are_a_clear_error(harm, tmp_path):
    write(base_of(trained(Model())), base_of(Model()), tmp_path)
    model = Model()
    if harm == "another model":
        model.all = torch.nn.Parameter(torch.zeros(13))
    else:
        (tmp_path / (INDEX if harm == "no index" else "model.safetensors")).unlink()

    with pytest.raises(ModelError, match="contains no weights that fit the model"):
        apply(model, tmp_path)
