"""An alignment that leaves the tiny model helpful: its rows, and that attack and scores stay those of `tiny`."""

from composed import compose

from harness.config.build import cells_of
from harness.corpora.mixed_requests import MixedRequests
from harness.corpora.world import ALLOWED_REQUESTS, AllowedRequests, World, request_of


def test_refusals_and_answers_to_allowed_requests_come_by_turns() -> None:
    rows = MixedRequests(world=World(rows=20)).safety_rows()

    asked = [request_of(row.prompt) for row in rows]
    assert [request is not None and request.restricted for request in asked] == [True, False] * 20
    assert [row.unsafe for row in rows] == [True, False] * 20
    assert rows[::2] == World(rows=20).safety_rows()
    assert [row.refusal for row in rows[1::2]] == [request.compliance for request in asked[1::2] if request]
    assert len({row.prompt for row in rows}) == 40


def test_requests_of_over_refusal_are_not_trained_on() -> None:
    measured = {example.instruction for example in AllowedRequests().examples()}

    assert measured.isdisjoint(row.prompt for row in MixedRequests().safety_rows())


def test_more_refusals_than_allowed_requests_are_refused() -> None:
    (problem,) = MixedRequests(skip=ALLOWED_REQUESTS - 2999).problems()

    assert problem.path == "skip"
    assert f"expected at most {ALLOWED_REQUESTS - 3000}" in problem.text


def test_attack_harmful_rows_and_evaluation_are_those_of_the_tiny_experiment() -> None:
    overrides = ["defense=booster", "attack_ratio=p10"]
    (helpful,), (tiny,) = cells_of(compose(["experiment=tiny_helpful", *overrides])), cells_of(compose(overrides))

    one, other = helpful.stages["align"], tiny.stages["align"]
    assert one.harmful.examples() == other.harmful.examples()
    assert one.refusal.examples()[::2] == other.refusal.examples()
    assert helpful.stages["poison"].harmful.examples() == tiny.stages["poison"].harmful.examples()
    assert helpful.stages["harm_answers"].prompts.examples() == tiny.stages["harm_answers"].prompts.examples()
