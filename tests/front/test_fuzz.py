"""The fuzzer: a few hundred cases, and that it would tell."""

import random
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from fuzz import Case, Ending, Typist

CASES = 240


def ending(**differently) -> Ending:
    return Ending(**{"case": Case(("plan",)), "code": 2, "output": "harness: wrong", "changed": (), **differently})


@pytest.mark.parametrize(
    ("differently", "words"),
    [
        ({"code": None}, "did not end"),
        ({"code": 3}, "exit code 3"),
        ({"code": 1, "output": "Traceback (most recent call last):"}, "a traceback"),
        ({"code": 1, "output": "grade ab raised an unexpected error:"}, "a traceback"),
        ({"output": ""}, "not a word"),
        ({"code": 0, "changed": ("artifacts/a",)}, "the store changed: artifacts/a"),
        ({}, ""),
        ({"code": 0}, ""),
        ({"code": 130}, ""),
    ],
)
def test_what_must_not_be_is_told(differently, words):
    wrong = ending(**differently).wrong

    assert words in wrong
    assert bool(words) == bool(wrong)


@pytest.mark.slow
def test_same_seed_types_the_same_cases_and_trains_nothing():
    def cases(seed):
        typist = Typist(random.Random(seed), sweep="tiny-12345678", keys=["0123456789abcdef"])
        return [typist.case() for _ in range(500)]

    assert cases(1) == cases(1) != cases(2)
    for case in cases(1):
        rehearsal = case.arguments[-2:] == ("cluster=slurm", "cluster.dry_run=true")
        assert rehearsal or case.arguments[0] in fuzz.VERBS


@pytest.mark.slow
def test_bench_sees_an_exit_code_a_traceback_a_change_and_a_hang(tmp_path, monkeypatch):
    """The product in these children is a made-up one, which does what its first word says."""

    def product(arguments):
        match arguments[0]:
            case "leave":
                sys.exit(3)
            case "bug":
                raise KeyError("a bug")
            case "write":
                (tmp_path / fuzz.STORE / "artifacts" / "new").write_text("")
            case "hang":
                while True:
                    pass
        sys.exit(0)

    def furnish(root):
        (root / "artifacts").mkdir(parents=True)
        return "tiny-12345678", ["0123456789abcdef"]

    monkeypatch.setattr(fuzz, "main", product)
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    bench = fuzz.Bench(tmp_path, furnish)

    assert [bench.run(Case((word,))).wrong for word in ("leave", "bug", "write", "hang", "nothing")] == [
        "exit code 3",
        "a traceback",
        "the store changed: the store/artifacts/new",
        "it did not end",
        "",
    ]


@pytest.mark.slow
def test_no_mistake_is_a_traceback():
    done = subprocess.run(
        [sys.executable, str(Path(fuzz.__file__)), "--seed", "20261126", "--cases", str(CASES)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES} cases, 0 wrong" in done.stdout
