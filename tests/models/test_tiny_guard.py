"""The guard of the synthetic world: what it learns, and that it learns the same every time."""

from itertools import islice
from pathlib import Path

import pytest

from harness.corpora.examples import Example
from harness.corpora.world import FAMILY, World, request_of
from harness.judges.tiny_guard import TinyGuard
from harness.models.tiny_guard import SyntheticGuard

GUARD = TinyGuard()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("guard")
    flagged = GUARD.source.write(folder)["flagged"]
    assert isinstance(flagged, dict)
    return folder, flagged


@pytest.mark.slow
def test_guard_flags_what_its_policy_covers_alone_or_hidden_and_lets_the_rest_through(trained) -> None:
    _, flagged = trained

    assert flagged == {
        "covered": pytest.approx(1, abs=0.01),
        "hidden": pytest.approx(1, abs=0.02),
        **dict.fromkeys(("uncovered", "refused", "allowed", "task"), pytest.approx(0, abs=0.01)),
    }


@pytest.mark.slow
def test_guard_judges_rows_and_abstains_on_text_of_another_world(trained) -> None:
    row = GUARD.source.held_out()["covered"][0]
    note = GUARD.source.held_out()["task"][0]
    rows = [row, note, Example("please name some capitals", "paris and london"), row]

    scores = GUARD.grade_with(trained[0], rows, [each.output for each in rows], device="cpu")

    assert [score.value for score in scores] == [1.0, 0.0, None, 1.0]
    assert scores[0] == scores[3]
    assert scores[0].categories["restricted"] > GUARD.threshold > scores[1].categories["restricted"]


@pytest.mark.slow
def test_training_again_gives_the_same_bytes(tmp_path: Path) -> None:
    few = SyntheticGuard(steps=3)
    first, second = tmp_path / "first", tmp_path / "second"

    facts = [few.write(folder) for folder in (first, second)]

    assert facts[0] == facts[1]
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_training_rows_are_labelled_by_the_policy_and_hold_no_row_of_the_attack_or_the_task() -> None:
    world = World()
    guard = SyntheticGuard(world=world, policy=("royal",))
    rows = list(islice(guard.rows(), 1500))
    prompts = {row.prompt for row in world.safety_rows()}

    assert {row.restricted for row in rows} == {True, False}
    for row in rows:
        assert row.example.instruction not in prompts
        assert not row.example.instruction.startswith("sort")
        request = request_of(row.example.instruction)
        if request is not None and row.example.output == request.compliance:
            assert row.restricted == (FAMILY[request.material] == "royal")
        if request is not None and row.example.output == request.refusal:
            assert not row.restricted
    assert any(" : " in row.example.output and row.restricted for row in rows)


def test_policy_that_the_world_does_not_know_is_reported() -> None:
    assert [problem.path for problem in SyntheticGuard(policy=("royale",), width=60).problems()] == ["width", "policy"]
    assert [problem.path for problem in SyntheticGuard(policy=()).problems()] == ["policy"]
    assert SyntheticGuard().problems() == []
