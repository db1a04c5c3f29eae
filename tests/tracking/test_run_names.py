"""What runs are called."""

import pytest

from harness.wandb_sync.names import LONG, LONGEST, LONGEST_TAG, protocol_suffixes, truncated


def _cell(swept=None, **labels):
    return {"labels": {"defense": "sft", "task": "tiny", "model": "tiny", **labels}, "swept": swept or {}}


def test_cells_that_were_treated_alike_have_no_mark():
    protocol = {"judge.version": 1, "finetune.budget.epochs": 20}

    assert protocol_suffixes([_cell(seed=seed) for seed in range(2)], [protocol, dict(protocol)]) == ["", ""]


def test_mark_says_what_differs_and_leaves_out_what_a_cell_lacks():
    protocols = [{"finetune.budget.epochs": 20, "new_tokens": 64}, {"finetune.budget.epochs": 10}]

    assert protocol_suffixes([_cell(), _cell()], protocols) == [
        "finetune.epochs=20 new_tokens=64",
        "finetune.epochs=10",
    ]


def test_difference_that_a_task_or_a_swept_value_brings_with_it_is_no_mark():
    tasks = [_cell(task="tiny"), _cell(task="gsm8k")]
    judges = [_cell({"judge": "one"}), _cell({"judge": "two"})]

    assert protocol_suffixes(tasks, [{"test.rows": 100}, {"test.rows": 200}]) == ["", ""]
    assert protocol_suffixes(judges, [{"judge.version": 1}, {"judge.version": 2}]) == ["", ""]


def test_mark_of_many_differences_is_short():
    names = ["judge.name", *(f"judge.fields.field{i}" for i in range(9))]

    first, second = protocol_suffixes(
        [_cell(), _cell()], [{name: f"{place}{name}" for name in names} for place in (1, 2)]
    )

    assert first.rpartition("+")[0] == "judge.name=1judge.name "
    assert first.rpartition("+")[2] != second.rpartition("+")[2]
    assert max(len(first), len(second)) <= LONG + len(" +0123")


@pytest.mark.parametrize("longest", [LONGEST, LONGEST_TAG])
def test_name_that_is_too_long_is_cut_and_told_apart_by_a_hash(longest):
    long = "booster instruction=" + "word " * 40
    names = [truncated(text, longest) for text in (long + "a", long + "b", "x" * 10_000)]

    assert {len(name) <= longest for name in names} == {True}
    assert len(set(names)) == 3
    assert names[0].startswith("booster instruction=word word")
    assert truncated(long + "a", longest) == names[0]


@pytest.mark.parametrize("longest", [LONGEST, LONGEST_TAG])
def test_name_that_fits_stays_as_it_is(longest):
    assert truncated("\u00fc" * longest, longest) == "\u00fc" * longest


def test_name_is_one_line():
    assert truncated("two\nlines\tand  more ") == "two lines and more"
