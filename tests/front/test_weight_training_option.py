"""Training of a model's own weights, as a user asks for it: what composes, and what is refused with which words."""

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.errors import ConfigError
from harness.models.trained_weights import TrainedWeights


def cell(*overrides):
    (found,) = cells_of(compose(overrides))
    return found


DOUBLE = "finetune.adapter=double"
LORA = "+finetune.fresh={rank: 4}"


def test_sweep_over_an_adapter_and_the_weights_is_two_alignments():
    cells = cells_of([*compose(["align.adapter.rank=4"]), *compose(["align.adapter=full"])])

    first, second = (each.stages["align"] for each in cells)
    assert first.base.key == second.base.key
    assert first.key != second.key
    assert second.adapter == TrainedWeights()


def test_training_the_same_weights_again_is_one_cell_under_both_protocols():
    single, double = (cell("align.adapter=full", f"finetune.adapter={protocol}") for protocol in ("single", "double"))

    assert single.stages["finetune"].key == double.stages["finetune"].key


def test_order_of_named_modules_changes_no_key():
    one, other = (cell(f"align.adapter=full:{names}").keys["align"] for names in ("q_proj+mlp", "mlp+q_proj"))

    assert one == other


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["align.adapter=fully"], "align.adapter"),
        (["align.adapter=none", "finetune.adapter=single"], "trains nothing (`align.adapter=none`)"),
        (["align.adapter=none", DOUBLE], "neither alignment nor fine-tuning trains anything"),
        (["align.adapter=none", DOUBLE, LORA, "defense=booster"], "`booster` needs a training"),
        ([DOUBLE, "+finetune.fresh=none", "defense=scaled_update"], "`scaled_update` repairs a fine-tuned model"),
        (["align.adapter=full", "defense=antidote"], "`antidote` reads or changes the two factors of an adapter"),
        (["align.adapter=full", "defense=safe_lora"], "alignment as a product of two factors"),
        (
            ["align.adapter=full", DOUBLE, "+finetune.fresh={rank: 4}", "defense=resta"],
            "the alignment trains no adapter",
        ),
        (["align.adapter=full", "defense=lox"], "`lox` reads or changes the two factors of an adapter"),
        (["align.adapter=full", "fuse=mean"], "experts are fused as adapters"),
        (["align.adapter=full", "federation=tiny", "finetune.adapter=single"], "clients of a federation train"),
        (["align.adapter=full", "attack=benign_selection"], "reads the victim through its adapter"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(overrides, words):
    with pytest.raises(ConfigError) as refused:
        cell(*overrides)

    assert words in str(refused.value)
