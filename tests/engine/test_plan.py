import sys
from itertools import product
from pathlib import Path

import pytest
from toys import Add, Booster, Mix, Number, chain, executor, run

from harness.engine.plan import Count, Plan
from harness.engine.stage import lineage
from harness.engine.store import Store
from harness.errors import DataError
from harness.local.ready_queue import ReadyQueue


def test_plan_of_400_cells_shares_20_alignments() -> None:
    base = Number(value=0)
    lambdas, alphas, ratios, tasks = (1, 2, 3, 4, 5), (0.01, 0.1, 0.5, 1.0), (0.0, 0.05, 0.1, 0.2, 0.5), (1, 2, 3, 4)

    def cell(lamb: float, alpha: float, ratio: float, task: int) -> Mix:
        alignment = Add(parent=base, amount=0, method=Booster(lamb=lamb, alpha=alpha))
        return Mix(left=alignment, right=Number(value=task + ratio))

    plan = Plan.of(cell(*point) for point in product(lambdas, alphas, ratios, tasks))

    assert len(plan.leaves) == 400
    assert plan.count(Store(Path("nowhere"))) == {"number": Count(21, 0), "add": Count(20, 0), "mix": Count(400, 0)}


def test_plan_of_leaves_puts_parents_first_and_each_leaf_early() -> None:
    first, second = chain(3), chain(2, start=9)

    plan = Plan.of([first, second, first])

    assert plan.leaves == (first, second)
    assert plan.stages == (*lineage((first,)), *lineage((second,)))
    for stage in plan.stages:
        assert all(plan.stages.index(parent) < plan.stages.index(stage) for parent in stage.parents)


def test_plan_pending_leaves_deleted_ancestors_of_stored_leaves_alone(root, store) -> None:
    leaf = chain(3)
    run(root, [leaf])
    (store.folder(leaf.parent) / "manifest.json").unlink()

    assert Plan.of([leaf]).pending(store) == ()
    assert Plan.of([Add(parent=leaf, amount=7)]).pending(store) == (leaf.parent, Add(parent=leaf, amount=7))
    assert Plan.of([leaf]).count(store) == {"number": Count(1, 1), "add": Count(2, 1)}


def test_plan_of_single_stage_leaves_missing_ancestors_alone(root, store) -> None:
    leaf = chain(2)

    assert Plan.single(leaf).pending(store) == (leaf,)
    assert executor().run(Plan.single(leaf), store).failed[leaf.key].cause == "missing parent"


def test_chain_that_is_deeper_than_the_stack_is_planned_and_rebuilt(root, store) -> None:
    leaf = Number(value=0)
    for amount in range(1, sys.getrecursionlimit() + 1):
        leaf = Add(parent=leaf, amount=amount % 7)
        assert leaf.key
    plan = Plan.of([leaf])
    store.register(plan.stages)

    assert len(plan.stages) == sys.getrecursionlimit() + 1
    assert store.stage(leaf.key) == leaf
    assert [stage.key for stage in lineage((store.stage(leaf.key),))] == [stage.key for stage in plan.stages]


def next_of(queue: ReadyQueue):
    """Return the next stage for the only worker there is."""
    assigned = queue.next({0: ""}, [0])
    return assigned and assigned.stage


def test_frontier_gives_out_stages_in_the_order_of_the_plan() -> None:
    left, right = chain(2), chain(2, start=5)
    frontier = ReadyQueue(Plan.of([left, right]).stages)

    first, second, none = next_of(frontier), next_of(frontier), next_of(frontier)
    frontier.put_back(first.key)
    frontier.done(second.key)

    assert (first, second, none) == (left.parent, right.parent, None)
    assert [next_of(frontier), next_of(frontier), next_of(frontier)] == [left.parent, right, None]
    assert len(frontier) == 3


def test_frontier_failure_blocks_all_descendants_and_nothing_else() -> None:
    base = Number(value=1)
    broken, sound = Add(parent=base, amount=1), Add(parent=base, amount=2)
    below, far = Add(parent=broken, amount=3), Mix(left=Add(parent=broken, amount=3), right=sound)
    frontier = ReadyQueue(Plan.of([below, far, sound]).stages)

    frontier.done(next_of(frontier).key)

    assert frontier.failed(broken.key) == [below, far]
    assert len(frontier) == 1


def test_preflight_of_pending_stages_names_each_problem_once(root) -> None:
    leaves = [Number(value=value, needs="a.json" if value < 3 else "b.json") for value in range(5)]

    with pytest.raises(DataError) as caught:
        Plan.of([*leaves, Number(value=9)]).preflight(Store(root))

    assert str(caught.value) == "`a.json`: it is missing\n`b.json`: it is missing"
    assert not root.exists()
