"""A sweep and the single run of the same words are the same cell, whatever the words and their order."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_run import both

from harness.config.build import cells_of
from harness.errors import ConfigError

GROUPS = {
    "defense": ["sft", "lisa", "booster", "vaccine", "vaccine_lisa", "panacea", "antidote"],
    "defense/align": ["sft", "booster", "vaccine"],
    "defense/finetune": ["sft", "lisa", "kl"],
    "attack": ["none", "mix"],
    "attack_ratio": ["p00", "p20"],
    "corpus": ["beavertails_pairs", "tiny"],
    "experiment": ["tvaccine_paper", "booster_paper", "booster"],
    "task": ["sst2", "gsm8k"],
    "cluster": ["slurm"],
}
VALUES = {
    "align.rows": ["300", "${finetune.rows}", "70"],
    "finetune.rows": ["200", "${align.rows}", "'${align.rows}'", "null"],
    "finetune.budget": ["{epochs: 1}", "{batch_size: 5, learning_rate: 1e-3}", "'${align.budget}'"],
    "finetune.budget.epochs": ["2", "${align.budget.epochs}"],
    "finetune.budget.batch_size": ["4", "${tuned.published.of.plain.batch_size}"],
    "align": ["{rows: 100, budget: {epochs: 1}}", "{adapter: {rank: '${finetune.budget.batch_size}'}}"],
    "align.adapter.targets": ["[q_proj]", "[o_proj,v_proj]"],
    "align.adapter.targets.0": ["o_proj"],
    "align.adapter.targets.7": ["o_proj"],
    "model.encoding": ["{max_length: 100}", "{template: alpaca}"],
    "model.encoding.max_length": ["80"],
    "corpus.refusal": ["{rows: 100}"],
    "corpus.refusal.rows": ["120", "${align.rows}"],
    "defense": ["{align: null}", "{align: {rho: 1}}", "{finetune: {rho: 0.5}}"],
    "defense.align": ["{lamb: 1}", "null", "{rho: 3}"],
    "defense.align.lamb": ["1", "${defense.align.alpha}", "${seed}"],
    "defense.align.rho": ["2", "${attack.ratio}"],
    "defense.finetune": ["null", "{rho: 0.25}"],
    "defense.finetune.rho": ["1", "${attack.ratio}"],
    "tuned.booster": ["{lamb: 7}"],
    "tuned.booster.lamb": ["3", "${seed}"],
    "tuned.lisa.rho": ["0.7"],
    "tuned.published.of.plain": ["{batch_size: 6}"],
    "tuned.published.of.plain.batch_size": ["7", "${align.budget.epochs}"],
    "attack.ratio": ["0.12", "${oc.select:nowhere,0.3}"],
    "attack.method": ["null"],
    "evaluation": ["{rows: 20, decoding: {max_prompt: 64}}"],
    "evaluation.rows": ["10", "${task.test_rows}"],
    "task.test_rows": ["50"],
    "task.instruction": ["'a, b = {c}'", "${hydra:runtime.choices.attack_ratio}", "'say \"${title}\", $1'"],
    "seed": ["1", "2.0", "${align.budget.epochs}", "${seed}"],
    "title": ["mine", "t_${seed}"],
    "mine": ["{a: 1}", "3"],
    "mine.a": ["${align.rows}"],
    "finetune.fresh": ["{rank: 2}", "null"],
    "finetune.fresh.rank": ["3"],
    "finetune.budget.precision": ["float32", "bfloat16"],
}
FAMILIES = [
    ["finetune.budget", "finetune.budget.epochs", "finetune.budget.batch_size", "finetune.budget.precision"],
    ["defense", "defense.align", "defense.align.lamb", "defense/align", "tuned.booster"],
    ["align", "align.rows", "finetune.rows", "corpus.refusal.rows", "corpus.refusal"],
    ["mine", "mine.a", "finetune.fresh", "finetune.fresh.rank"],
]
"""Names that meet each other: drawn together more often than chance would."""


@st.composite
def an_override(draw, names, most=1):
    """Return an override, once for each of its values."""
    name = draw(st.sampled_from(names))
    sign = draw(st.sampled_from(["", "", "", "", "", "+", "++", "~"]))
    if sign == "~":
        return [f"~{name}"]
    known = [*GROUPS.get(name, []), *VALUES.get(name, [])]
    return [f"{sign}{name}={value}" for value in draw(st.lists(st.sampled_from(known), min_size=1, max_size=most))]


@st.composite
def a_command(draw):
    """Return overrides in an order; one may have two values."""
    everything = [*GROUPS, *VALUES]
    family = draw(st.sampled_from([everything, *FAMILIES]))
    items = st.one_of(an_override(family), an_override(everything))
    others = draw(st.lists(items, max_size=5))
    return draw(st.permutations([draw(an_override(family, most=2)), *others]))


def words(override):
    """Write an override with its values as a sweep does."""
    name = override[0].partition("=")[0]
    return override[0] if len(override) == 1 else f"{name}={','.join(text.partition('=')[2] for text in override)}"


def told(make):
    """Return what distinguishes a cell in a report, or that it is refused."""
    try:
        cell = make()
    except ConfigError:
        return "refused"
    return cell.labels, cell.swept, cell.protocol, {part: stage.key for part, stage in cell.stages.items()}


def one(compositions):
    (cell,) = cells_of(compositions)
    return cell


def check(ways, command):
    singles = [told(lambda cell=cell: ways.single(cell)) for cell in product(*command)]
    swept = [told(lambda cell=cell: one(ways.swept(cell))) for cell in product(*command)]
    assert swept == singles

    try:
        together = [told(lambda each=each: one([each])) for each in ways.swept([words(item) for item in command])]
    except ConfigError:
        # A cell that cannot even be composed refuses the sweep.
        assert "refused" in singles
    else:
        assert together == singles


@pytest.fixture(scope="module")
def ways():
    with both() as ways:
        yield ways


@pytest.mark.slow
@settings(max_examples=25)
@given(command=a_command())
def test_sweep_and_single_run_of_the_same_words_are_the_same_cell(ways, command):
    check(ways, command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [["defense=lisa"], ["defense.finetune=null"]],
        [["finetune.budget=${align.budget}"], ["align.budget.epochs=1", "align.budget.epochs=2"]],
        [["defense=booster", "defense=lisa"], ["defense.align=null"]],
        [["~attack.method"], ["attack_ratio=p00"]],
    ],
)
def test_words_that_once_were_told_apart_are_accepted_in_both_ways(ways, command):
    assert all(told(lambda cell=cell: ways.single(cell)) != "refused" for cell in product(*command))
    check(ways, command)
