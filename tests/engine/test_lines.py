"""Lines and batches: what becomes one job, and what waits for what."""

from dataclasses import dataclass
from typing import ClassVar, final

from hypothesis import given
from hypothesis import strategies as st

from harness.engine.plan import Plan
from harness.engine.stage import Stage, StageContext, lineage
from harness.errors import Problem
from harness.slurm.packing import JobArray, arrange_jobs


@dataclass(frozen=True, kw_only=True, eq=False)
class Toy(Stage):
    label: int
    reads: tuple[Stage, ...] = ()

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        raise AssertionError("arranged, never run")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Align(Toy):
    name: ClassVar[str] = "align"
    version: ClassVar[int] = 1


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Tune(Toy):
    name: ClassVar[str] = "tune"
    version: ClassVar[int] = 1


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Answer(Toy):
    name: ClassVar[str] = "answer"
    version: ClassVar[int] = 1


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Grade(Toy):
    name: ClassVar[str] = "grade"
    version: ClassVar[int] = 1


def arranged(todo, *, elsewhere=(), joins=("answer", "grade"), fans=("answer", "grade"), pack=None, limit=1000):
    return arrange_jobs(
        todo,
        queued={stage.key for stage in elsewhere},
        fuse=joins,
        fuse_siblings=fans,
        chains_per_job=pack or {},
        limit=limit,
    )


def labels(array: JobArray) -> list[list[list[int]]]:
    return [[[stage.label for stage in chain] for chain in job] for job in array.jobs]


def tuned(*numbers: int, parent: Stage | None = None) -> list[Tune]:
    return [Tune(label=number, reads=(parent,) if parent else ()) for number in numbers]


def test_straight_line_of_joining_kinds_is_one_job():
    tune = Tune(label=1)
    answer = Answer(label=2, reads=(tune,))
    grade = Grade(label=3, reads=(answer,))

    (array,) = arranged([tune, answer, grade])

    assert labels(array) == [[[1, 2, 3]]]
    assert array.kind == "tune"
    assert array.needs == frozenset()


def test_kind_that_does_not_join_begins_a_job_that_needs_its_parent():
    tune = Tune(label=1)
    answer = Answer(label=2, reads=(tune,))

    first, second = arranged([tune, answer], joins=())

    assert (labels(first), labels(second)) == ([[[1]]], [[[2]]])
    assert second.needs == {tune.key}


def test_children_that_fan_out_join_their_parents_job():
    tune = Tune(label=1)
    answers = [Answer(label=2, reads=(tune,)), Answer(label=3, reads=(tune,))]

    (array,) = arranged([tune, *answers])

    assert labels(array) == [[[1, 2, 3]]]


def test_children_that_do_not_fan_out_run_beside_each_other():
    tune = Tune(label=1)
    answers = [Answer(label=2, reads=(tune,)), Answer(label=3, reads=(tune,))]

    first, second = arranged([tune, *answers], fans=())

    assert labels(first) == [[[1]]]
    assert labels(second) == [[[2]], [[3]]]
    assert second.needs == {tune.key}


def test_parent_with_children_of_two_kinds_is_no_ones_line():
    tune = Tune(label=1)
    children = [Answer(label=2, reads=(tune,)), Grade(label=3, reads=(tune,))]

    arrays = arranged([tune, *children])

    assert [labels(array) for array in arrays] == [[[[1]]], [[[2]]], [[[3]]]]


def test_stages_of_one_kind_with_the_same_needs_are_one_batch():
    one, other = Align(label=1), Align(label=2)
    todo = [one, *tuned(3, 4, parent=one), other, *tuned(5, parent=other)]

    arrays = arranged(todo)

    assert [labels(array) for array in arrays] == [[[[1]], [[2]]], [[[3]], [[4]]], [[[5]]]]
    assert [array.needs for array in arrays] == [frozenset(), {one.key}, {other.key}]


def test_batch_longer_than_the_limit_is_split():
    arrays = arranged(tuned(*range(5)), limit=2)

    assert [labels(array) for array in arrays] == [[[[0]], [[1]]], [[[2]], [[3]]], [[[4]]]]


def test_packed_lines_share_a_task_and_count_as_one_towards_the_limit():
    arrays = arranged(tuned(*range(5)), pack={"tune": 2}, limit=2)

    assert [labels(array) for array in arrays] == [[[[0], [1]], [[2], [3]]], [[[4]]]]


def test_needs_leave_out_what_others_of_them_need():
    first = Align(label=1)
    second = Align(label=2, reads=(first,))
    third = Tune(label=3, reads=(first, second))

    arrays = arranged([first, second, third], joins=())

    assert arrays[-1].needs == {second.key}


def test_stage_that_runs_elsewhere_is_needed_and_no_ones_line():
    tune = Tune(label=1)
    answer = Answer(label=2, reads=(tune,))

    (array,) = arranged([answer], elsewhere=[tune])

    assert labels(array) == [[[2]]]
    assert array.needs == {tune.key}


def test_stage_that_reads_another_line_as_well_does_not_join():
    tune, other = Tune(label=1), Align(label=2)
    answer = Answer(label=3, reads=(tune, other))

    arrays = arranged([tune, other, answer])

    assert [labels(array) for array in arrays] == [[[[1]]], [[[2]]], [[[3]]]]
    assert arrays[-1].needs == {tune.key, other.key}


def test_stage_that_reads_what_its_line_waits_for_joins_the_line():
    align = Align(label=1)
    tune = Tune(label=2, reads=(align,))
    answer = Answer(label=3, reads=(tune, align))

    planned = arranged([align, tune, answer])
    elsewhere = arranged([tune, answer], elsewhere=[align])

    assert [labels(array) for array in planned] == [[[[1]]], [[[2, 3]]]]
    assert [labels(array) for array in elsewhere] == [[[[2, 3]]]]


def test_missing_ancestor_of_a_stored_parent_is_waited_for_and_keeps_the_stage_out_of_the_line():
    tune, lost = Tune(label=1), Align(label=2)
    stored = Align(label=3, reads=(lost,))
    answer = Answer(label=4, reads=(tune, stored))

    arrays = arranged([tune, lost, answer])

    assert [labels(array) for array in arrays] == [[[[1]]], [[[2]]], [[[4]]]]
    assert arrays[-1].needs == {tune.key, lost.key}


@st.composite
def graphs(draw):
    """Draw stages whose parents precede them, and say of each whether it is stored, elsewhere or to do."""
    stages: list[Toy] = []
    for label in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([Align, Tune, Answer, Grade]))
        reads = draw(st.lists(st.sampled_from(stages), unique=True, max_size=3)) if stages else []
        stages.append(kind(label=label, reads=tuple(reads)))
    plan = Plan.of(stages)
    places = draw(st.lists(st.sampled_from("tttse"), min_size=len(stages), max_size=len(stages)))
    where = dict(zip(plan.stages, places, strict=True))
    return [[stage for stage in plan.stages if where[stage] == place] for place in "te"]


@given(
    graphs(),
    st.sets(st.sampled_from(["tune", "answer", "grade"])),
    st.sets(st.sampled_from(["tune", "answer", "grade"])),
    st.dictionaries(st.sampled_from(["align", "tune", "answer", "grade"]), st.integers(1, 3)),
    st.integers(1, 4),
)
def test_every_arrangement_runs_each_stage_once_and_after_what_it_needs(graph, joins, fans, pack, limit):
    todo, elsewhere = graph

    arrays = arranged(todo, elsewhere=elsewhere, joins=joins, fans=fans, pack=pack, limit=limit)

    assert sorted(stage.key for array in arrays for stage in array.stages) == sorted(stage.key for stage in todo)
    pending = {stage.key for stage in (*todo, *elsewhere)}
    before = {stage.key for stage in elsewhere}
    for array in arrays:
        assert array.needs <= before
        assert len(array.jobs) <= limit
        assert all(len(job) <= pack.get(array.kind, 1) for job in array.jobs)
        awaited = set(array.needs) | {
            other.key for need in array.needs for other in lineage((by_key(todo, elsewhere)[need],))
        }
        for chain in (chain for job in array.jobs for chain in job):
            done: set[str] = set()
            for stage in chain:
                unstored = {other.key for other in lineage(stage.parents)} & pending
                assert unstored <= done | awaited
                done.add(stage.key)
        before |= {stage.key for stage in array.stages}


def by_key(*groups):
    return {stage.key: stage for group in groups for stage in group}


def test_packed_lines_may_wait_for_different_stages():
    shared, *own = tuned(0, 1, 2)
    readers = [Answer(label=10 + place, reads=(shared, one)) for place, one in enumerate(own)]
    todo = [shared, *own, *readers]

    *_, last = arranged(todo, joins=(), pack={"answer": 2})

    assert labels(last) == [[[10], [11]]]
    assert last.needs == {stage.key for stage in (shared, *own)}
    assert last.common == {shared.key}
