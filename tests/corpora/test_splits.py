from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.corpora.corpus import Corpus, Overlap, Span, overlaps
from harness.corpora.examples import Example, Role, SafetyRow
from harness.corpora.slices import Keep, Slice
from harness.engine.build import build
from harness.engine.identity import key_of, payload_of
from harness.engine.spec import describe
from harness.errors import ConfigError, DataError, Problem


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """Rows that know their place; every third is safe and has no harmful answer."""

    name: ClassVar[str] = "numbered"
    version: ClassVar[int] = 1
    rows: int = 90
    title: str = "n"

    def preflight(self) -> list[Problem]:
        return []

    def safety_rows(self) -> list[SafetyRow]:
        return [
            SafetyRow(f"{self.title} {i}", "no", "" if i % 3 == 0 else f"yes {i}", unsafe=i % 3 != 0)
            for i in range(self.rows)
        ]


ROLES = (Role.REFUSAL, Role.HARMFUL, Role.ATTACK, Role.EVALUATION)


def _corpus(**changes: object) -> Corpus:
    settings = {"origin": Numbered(), "refusal": Span(rows=10), "attack": Span(rows=10), "evaluation": Span(rows=10)}
    return Corpus(**(settings | changes))  # type: ignore[arg-type]


def _prompts(corpus: Corpus, role: Role) -> list[str]:
    return [row.prompt for row in corpus.slice(role).safety_rows()]


def _spans() -> st.SearchStrategy[Span]:
    start = st.none() | st.integers(0, 30)
    return st.builds(Span, rows=st.integers(1, 12), start=start, keep=st.sampled_from([Keep.SAFE, Keep.UNSAFE]))


@given(
    spans=st.tuples(_spans(), _spans(), _spans(), _spans()),
    shuffle=st.none() | st.integers(0, 9),
    own=st.booleans(),
)
def test_corpus_without_problems_has_disjoint_roles(spans: tuple[Span, ...], shuffle: int | None, own: bool) -> None:
    refusal, harmful, attack, evaluation = spans
    corpus = Corpus(
        origin=Numbered(rows=600),
        refusal=refusal,
        harmful=harmful,
        attack=attack,
        evaluation=evaluation,
        shuffle=shuffle,
        evaluation_origin=Numbered(rows=600, title="own") if own else None,
    )

    rows = {role: set(corpus.slice(role).safety_rows()) for role in ROLES}
    disjoint = all(not rows[one] & rows[other] for one, other in combinations(ROLES, 2))

    assert [len(rows[role]) for role in ROLES] == [span.rows for span in spans]
    assert disjoint is (corpus.problems() == [])


@given(spans=st.tuples(*[st.builds(Span, rows=st.integers(1, 12))] * 4))
def test_corpus_without_starts_is_disjoint_by_construction(spans: tuple[Span, ...]) -> None:
    corpus = _corpus(**dict(zip(("refusal", "harmful", "attack", "evaluation"), spans, strict=True)))

    assert corpus.problems() == []


def test_corpus_in_published_order_lays_roles_one_after_the_other() -> None:
    corpus = _corpus(refusal=Span(rows=3), attack=Span(rows=2), evaluation=Span(rows=2))

    assert _prompts(corpus, Role.REFUSAL) == ["n 1", "n 2", "n 4"]
    assert _prompts(corpus, Role.ATTACK) == ["n 5", "n 7"]
    assert _prompts(corpus, Role.EVALUATION) == ["n 8", "n 10"]


def test_corpus_shuffled_takes_other_rows_by_seed() -> None:
    published, one, two = (_prompts(_corpus(shuffle=seed), Role.REFUSAL) for seed in (None, 1, 2))

    assert published != one != two
    assert one == _prompts(_corpus(shuffle=1), Role.REFUSAL)


def test_corpus_with_meeting_ranges_reports_both_roles() -> None:
    corpus = _corpus(attack=Span(rows=10, start=5), refusal=Span(rows=10, start=0))

    assert list(map(str, corpus.problems())) == [
        "`attack`: unsafe rows 5 to 14 overlap `refusal` (unsafe rows 0 to 9); expected disjoint ranges with the "
        "same `keep`. Omit `start` to place them one after the other"
    ]


def test_corpus_with_all_rows_beside_unsafe_rows_of_one_origin_is_a_problem() -> None:
    apart = _corpus(attack=Span(rows=1, start=80, keep=Keep.ALL))

    assert [problem.path for problem in apart.problems()] == ["attack", "evaluation"]


def test_corpus_with_shared_prompts_gives_the_defender_the_refusals_prompts() -> None:
    corpus = _corpus(shared_prompts=True)

    refusals, harmful = corpus.slice(Role.REFUSAL).examples(), corpus.slice(Role.HARMFUL).examples()

    assert corpus.problems() == []
    assert [row.instruction for row in refusals] == [row.instruction for row in harmful]
    assert refusals[0] == Example("n 1", "no")
    assert harmful[0] == Example("n 1", "yes 1")


def test_corpus_ranges_shared_without_being_asked_for_are_a_problem() -> None:
    spans = {"refusal": Span(rows=5, start=0), "harmful": Span(rows=5, start=0)}

    assert len(_corpus(**spans).problems()) == 1
    assert _corpus(**spans, shared_prompts=True).problems() == []


def test_corpus_slice_of_fewer_rows_is_the_beginning_and_of_more_is_an_error() -> None:
    corpus = _corpus()

    assert corpus.slice(Role.ATTACK, 4).safety_rows() == corpus.slice(Role.ATTACK).safety_rows()[:4]
    with pytest.raises(ConfigError, match=r"`corpus.attack.rows`: 10 rows, but 11 requested"):
        corpus.slice(Role.ATTACK, 11)
    with pytest.raises(ConfigError, match=r"`corpus.harmful`: the corpus has no rows for this role"):
        corpus.slice(Role.HARMFUL)


def test_slice_identity_is_untouched_by_other_roles() -> None:
    corpus = _corpus()
    refusal = key_of(payload_of(corpus.slice(Role.REFUSAL)))

    changed = replace(corpus, evaluation=Span(rows=3), attack=Span(rows=7, start=50))

    assert key_of(payload_of(changed.slice(Role.REFUSAL))) == refusal
    assert key_of(payload_of(replace(corpus, shuffle=0).slice(Role.REFUSAL))) != refusal


def test_slice_beyond_the_last_row_says_how_many_there_are() -> None:
    part = Slice(role=Role.ATTACK, origin=Numbered(rows=9), start=4, rows=5)

    with pytest.raises(DataError, match=r"rows 4 to 8 of `numbered` requested, but it has 6 unsafe rows"):
        part.safety_rows()
    assert [str(problem).split(":")[0] for problem in part.preflight()] == ["`corpus.attack`"]


def test_slice_of_rows_without_the_answer_of_their_role_is_a_data_error() -> None:
    part = Slice(role=Role.HARMFUL, origin=Numbered(), start=0, rows=6, keep=Keep.ALL)

    with pytest.raises(DataError, match=r"2 of 6 rows of `numbered` have no harmful answer"):
        part.examples()
    assert len(replace(part, role=Role.EVALUATION).examples()) == 6


def test_span_out_of_range_reports_every_field() -> None:
    assert [problem.path for problem in Span(rows=0, start=-1).problems()] == ["rows", "start"]


def test_overlaps_count_rows_and_prompts() -> None:
    rows = [Example("a", "1"), Example("a", "2"), Example("b", "3"), Example("c", "6", "with input")]
    others = [Example("a", "1"), Example("b", "4"), Example("c", "6")]

    assert overlaps(rows, others) == Overlap(rows=1, prompts=2)
    assert overlaps(rows, []) == Overlap(rows=0, prompts=0)


@pytest.fixture
def plain() -> dict[str, object]:
    return {"origin": {"_target_": f"{__name__}.Numbered"}, "refusal": {"rows": 2}, "attack": {"rows": 2}}


def test_corpus_from_plain_data_survives_being_written_and_read(plain: dict[str, object]) -> None:
    corpus = build(Corpus, plain | {"evaluation": {"rows": 2, "keep": "unsafe"}}, allow=("",))

    again = build(Slice, describe(corpus.slice(Role.EVALUATION)), allow=("",))

    assert again == corpus.slice(Role.EVALUATION)


def test_corpus_from_plain_data_with_meeting_ranges_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"`corpus.evaluation`: .* overlap `refusal`"):
        build(Corpus, plain | {"evaluation": {"rows": 2, "start": 1}}, path="corpus", allow=("",))
