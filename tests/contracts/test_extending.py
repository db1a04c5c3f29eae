"""The classes and files in docs/extending.md work as they are written there."""

import re
from pathlib import Path

import pytest
from composed import compose

from harness.config.build import cells_of
from harness.corpora.examples import Example

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
FENCE = re.compile(r"^```(?:python|yaml)?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`(my_\w+/\S+\.(?:py|yaml)|sources\.yaml)`")


def files_of_the_page():
    """Yield the path and the content of each file: the path is the first one in the text before its block."""
    before, *rest = FENCE.split(PAGE.read_text())
    for content, after in zip(rest[::2], rest[1::2], strict=True):
        if named := FILE.search(before.rpartition("\n## ")[2]):
            yield named[1], content
        before = after


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A folder with every file of the page, and the data that it speaks of."""
    folder = tmp_path_factory.mktemp("laboratory")
    for name, content in files_of_the_page():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name in ("train", "test"):
        rows = "".join(f'{{"question": "{name} {number}?", "answer": "{number}"}}\n' for number in range(1200))
        (folder / f"{name}.jsonl").write_text(rows)
    return folder


@pytest.fixture
def cell(laboratory, monkeypatch):
    monkeypatch.syspath_prepend(laboratory)
    monkeypatch.setenv("HARNESS_DATA", str(laboratory))
    chosen = ["task=questions", "judge=regex", "attack=twice", "targets=[my_lab.]"]
    (found,) = cells_of(compose(chosen, str(laboratory / "my_conf")))
    return found


def test_page_has_every_file(laboratory):
    assert sorted(str(path.relative_to(laboratory)) for path in laboratory.rglob("*.*") if path.suffix != ".jsonl") == [
        "my_conf/attack/twice.yaml",
        "my_conf/judge/regex.yaml",
        "my_conf/task/questions.yaml",
        "my_lab/questions.py",
        "my_lab/regex.py",
        "my_lab/twice.py",
        "sources.yaml",
    ]


def test_cell_of_the_page_can_be_run(cell):
    assert [problem for stage in cell.stages.values() for problem in stage.preflight()] == []
    assert (cell.labels["task"], cell.labels["attack"]) == ("questions", "twice")


def test_classes_of_the_page_do_what_it_says(cell):
    task, judge = cell.stages["accuracy"].task, cell.stages["harm"].judge
    examples = task.test.examples()

    assert examples[:1] == [Example("test 0?", "0")]
    assert len(examples) == 100
    assert [score.value for score in task.grade(examples[:2], ["0", "2"])] == [1.0, 0.0]
    assert [score.value for score in judge.grade(examples[:2], ["take the bus", "no"], device="cpu")] == [1.0, 0.0]
