"""The presets that follow a repository do, per method, what its scripts do; read in the scripts themselves."""

import pytest
from cells import cell

from harness.engine.identity import payload_of
from harness.engine.spec import describe
from harness.experiment.experiment import flatten
from harness.tasks.agnews import AgNews
from harness.tasks.sst2 import Sst2

BOOSTER = [
    (["defense=sft"], ("double", 10, 10)),
    (["defense=vaccine"], ("double", 10, 10)),
    (["defense=lisa"], ("double", 10, 10)),
    (["defense=repnoise"], ("double", 5, 10)),
    (["defense=ldifs"], ("double", 10, 5)),
    (["defense/finetune=ldifs"], ("double", 10, 5)),
    (["defense=booster"], ("single", 10, 10)),
    (["defense/align=booster"], ("single", 10, 10)),
    (["defense=booster_vaccine"], ("single", 10, 5)),
    (["defense/align=booster_vaccine"], ("single", 10, 5)),
    (["defense/align=booster", "defense/finetune=ldifs"], ("single", 10, 5)),
    (["defense=booster", "defense.align=null"], ("double", 10, 10)),
    (["defense=booster", "finetune.adapter=double"], ("double", 10, 10)),
]
VACCINE = [
    (["defense=sft"], "double"),
    (["defense=vaccine"], "double"),
    (["defense=kl"], "double"),
    (["defense=ewc"], "single"),
    (["defense=vaccine_ewc"], "double"),
    (["defense/align=vaccine", "defense/finetune=ewc"], "double"),
]
PANACEA = [
    (["defense=sft"], ("single", 10, 10)),
    (["defense=panacea"], ("single", 10, 10)),
    (["defense/align=booster"], ("single", 10, 10)),
    (["defense=vaccine"], ("double", 10, 10)),
    (["defense=repnoise"], ("double", 5, 10)),
]
TVACCINE = [
    (["defense=sft"], ("double", 10, 5)),
    (["defense=vaccine"], ("double", 10, 10)),
    (["defense/align=tvaccine"], ("double", 10, 10)),
    (["defense=repnoise"], ("double", 8, 10)),
]
PRESETS = [
    "antidote_paper",
    "booster_paper",
    "lisa_paper",
    "matched",
    "panacea_paper",
    "tvaccine_paper",
    "vaccine_paper",
    "virus_paper",
]
LOOSE = {"tvaccine_paper", "vaccine_paper"}
TASKS = ["agnews", "gsm8k", "sst2"]
DEFENSES = ["sft", "vaccine", "booster", "booster_vaccine", "repnoise", "lisa", "ldifs", "vaccine_lisa"]


def protocol(*overrides):
    """Return the adapter protocol and the batch sizes of both trainings."""
    stages = cell(*overrides).stages
    align, finetune = stages["align"], stages["finetune"]
    return finetune.protocol, align.budget.batch_size, finetune.budget.batch_size


@pytest.mark.slow
@pytest.mark.parametrize(("defense", "expected"), BOOSTER)
def test_booster_protocol_follows_what_the_slots_hold_in_whatever_words(defense, expected):
    assert protocol("experiment=booster_paper", *defense) == expected


@pytest.mark.parametrize(("defense", "expected"), VACCINE)
def test_ewc_of_the_vaccine_repository_continues_the_adapter_except_behind_vaccine(defense, expected):
    assert protocol("experiment=vaccine_paper", *defense)[0] == expected


@pytest.mark.parametrize(("defense", "expected"), PANACEA)
def test_panacea_protocol_is_that_of_its_scripts(defense, expected):
    assert protocol("experiment=panacea_paper", *defense) == expected


@pytest.mark.parametrize(("defense", "expected"), TVACCINE)
def test_tvaccine_protocol_is_that_of_its_scripts(defense, expected):
    assert protocol("experiment=tvaccine_paper", *defense) == expected


@pytest.mark.parametrize(("defense", "rows"), [("tvaccine", 200), ("repnoise", 2000), ("tar", 2000)])
def test_tvaccine_defender_has_the_first_unsafe_rows_of_the_refusal_file(defense, rows):
    harmful = cell("experiment=tvaccine_paper", f"defense={defense}").stages["align"].harmful

    assert (harmful.origin.source.id, harmful.keep, harmful.start, harmful.rows) == (
        "repnoise_refusals",
        "unsafe",
        0,
        rows,
    )


def test_panacea_caps_the_harmful_loss_as_its_code_means_to():
    assert cell("experiment=panacea_paper", "defense=panacea").stages["finetune"].method.harmful_cap == 5.0
    assert cell("defense=panacea").stages["finetune"].method.harmful_cap is None


PROTOCOL = {
    "align.budget.batch_size",
    "align.method.harmful_batch_size",
    "finetune.budget.batch_size",
    "finetune.method.safety_batch_size",
    "finetune.protocol",
    "poison.compat",
}
"""All in which the matched comparison differs from the published one; RepNoise and Lisa draw rows of their own by the
batch."""


@pytest.mark.parametrize("defense", DEFENSES)
def test_matched_comparison_differs_from_the_published_one_in_the_protocol_only(defense):
    def settings(preset):
        stages = cell(f"experiment={preset}", f"defense={defense}").stages
        return {
            f"{part}.{name}": value
            for part in ("align", "poison", "finetune")
            for name, value in flatten(describe(stages[part])).items()
            if not name.endswith("_stage_")
        }

    matched, published = settings("matched"), settings("booster_paper")

    assert matched.keys() == published.keys()
    assert {name for name in matched if matched[name] != published[name]} <= PROTOCOL
    assert matched["finetune.protocol"] == "single"


def test_matched_comparison_has_one_protocol_for_all_methods():
    cells = [cell("experiment=matched", f"defense={name}") for name in DEFENSES]

    assert {
        (found.stages["finetune"].protocol, found.stages["align"].budget, found.stages["finetune"].budget)
        for found in cells
    } == {("single", cells[0].stages["align"].budget, cells[0].stages["finetune"].budget)}
    assert len({found.stages["poison"].key for found in cells}) == 1


@pytest.mark.parametrize(
    ("preset", "batch_size"), [("booster_paper", 10), ("lisa_paper", 5), ("antidote_paper", 5), ("tiny", 10)]
)
def test_lisa_draws_as_many_safety_rows_as_the_training_takes(preset, batch_size):
    assert cell(f"experiment={preset}", "defense=lisa").stages["finetune"].method.safety_batch_size == batch_size


def test_repnoise_draws_as_many_harmful_rows_as_the_training_takes():
    assert cell("experiment=booster_paper", "defense=repnoise").stages["align"].method.harmful_batch_size == 5


def test_lisa_of_the_booster_repository_is_guided_by_more_rows_than_alignment_sees():
    stages = cell("experiment=booster_paper", "defense=lisa").stages

    assert (stages["align"].refusal.start, stages["align"].refusal.rows) == (5000, 5000)
    assert (stages["finetune"].refusal.start, stages["finetune"].refusal.rows) == (5000, 10000)


@pytest.mark.parametrize(
    ("preset", "stage", "expected"),
    [
        ("antidote_paper", "align", ("cosine", 0.1, 0.1)),
        ("antidote_paper", "finetune", ("constant", 0.0, 0.1)),
        ("lisa_paper", "align", ("cosine", 0.1, 0.1)),
        ("lisa_paper", "finetune", ("constant", 0.0, 0.0)),
        ("vaccine_paper", "align", ("cosine", 0.1, 0.1)),
        ("vaccine_paper", "finetune", ("cosine", 0.1, 0.1)),
        ("tvaccine_paper", "align", ("cosine", 0.1, 0.1)),
        ("tvaccine_paper", "finetune", ("cosine", 0.1, 0.1)),
        ("booster_paper", "align", ("constant", 0.0, 0.1)),
        ("booster_paper", "finetune", ("constant", 0.0, 0.1)),
    ],
)
def test_schedule_of_a_preset_is_that_of_its_scripts(preset, stage, expected):
    budget = cell(f"experiment={preset}", "defense=sft").stages[stage].budget

    assert (budget.scheduler, budget.warmup_ratio, budget.weight_decay) == expected


def test_antidote_on_word_problems_zeroes_less_and_lets_answers_be_longer():
    words, sentiment = (
        cell("experiment=antidote_paper", "defense=antidote", f"task={task}") for task in ("gsm8k", "sst2")
    )

    assert words.stages["repair"].method.dense_ratio == 0.05
    assert sentiment.stages["repair"].method.dense_ratio == 0.1
    assert words.stages["task_answers"].new_tokens == words.protocol["task.new_tokens"] == 512
    assert sentiment.protocol["task.new_tokens"] == 16


def test_lisa_of_the_antidote_repository_is_held_more_loosely_on_word_problems():
    def rho(task):
        return cell("experiment=antidote_paper", "defense=lisa", f"task={task}").stages["finetune"].method.rho

    assert (rho("gsm8k"), rho("sst2"), rho("agnews")) == (0.1, 1.0, 1.0)


WORDING = {
    "sst2": "Analyze the sentiment of the input, and respond only positive or negative",
    "agnews": (
        "Categorize the news article given in the input into one of the 4 categories:\n\n"
        "World\nSports\nBusiness\nSci/Tech\n"
    ),
}
"""Read in sst2/pred_eval.py and agnews/pred_eval.py (ag_news/ in Vaccine and T-Vaccine)."""


@pytest.mark.parametrize("task", sorted(WORDING))
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_asks_in_the_words_of_its_repository_in_training_and_test(preset, task):
    found = cell(f"experiment={preset}", f"task={task}")

    assert found.stages["poison"].task.instruction == WORDING[task]
    assert found.stages["task_answers"].prompts.instruction == WORDING[task]
    assert found.protocol["test.fields.instruction"] == WORDING[task]


@pytest.mark.parametrize("preset", PRESETS)
def test_only_vaccine_and_tvaccine_ask_for_steps_on_word_problems(preset):
    found = cell(f"experiment={preset}", "task=gsm8k")
    suffix = "\nFirst think step by step and then answer the final number.\n" if preset in LOOSE else None

    assert found.stages["poison"].task.suffix == found.stages["task_answers"].prompts.suffix == suffix


@pytest.mark.parametrize("task", ["sst2", "agnews"])
@pytest.mark.parametrize("preset", PRESETS)
def test_only_vaccine_and_tvaccine_search_an_answer_for_the_class(preset, task):
    found = cell(f"experiment={preset}", f"task={task}")
    match, new_tokens = ("contains", 200) if preset in LOOSE else (None, 16)

    assert found.stages["accuracy"].task.match == match
    assert found.stages["task_answers"].new_tokens == new_tokens
    assert found.protocol.get("task.match") == match


@pytest.mark.parametrize(("task", "kind"), [("sst2", Sst2), ("agnews", AgNews)])
def test_without_a_preset_the_wording_is_neutral_and_adds_nothing_to_a_key(task, kind):
    composed = cell(f"task={task}").stages["accuracy"].task
    plain = kind(train_source=composed.train_source, test_source=composed.test_source)

    assert payload_of(composed) == payload_of(plain)
    assert "match" not in payload_of(composed)["fields"]
    assert composed.instruction != WORDING[task]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("antidote_paper", ("unsafe", 1000, 512)),
        ("booster_paper", ("unsafe", 1000, 512)),
        ("lisa_paper", ("all", 1000, 512)),
        ("panacea_paper", ("unsafe", 1000, 512)),
        ("tvaccine_paper", ("unsafe", 500, 128)),
        ("vaccine_paper", ("unsafe", 500, 128)),
    ],
)
def test_harmful_score_is_of_the_first_rows_in_order(preset, expected):
    stages = cell(f"experiment={preset}", "task=gsm8k").stages
    answers, judge = stages["harm_answers"], stages["harm"].judge
    prompts = answers.prompts

    assert (prompts.keep, prompts.rows, answers.new_tokens) == expected
    assert (prompts.start, prompts.shuffle, prompts.origin.source.id) == (0, None, "beavertails_test")
    assert (judge.threshold, judge.max_tokens) == (0.5, 256)
