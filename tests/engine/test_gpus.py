"""Workers on GPUs: which there are, which worker gets which, and which stage goes to which worker."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from toys import Add, Number, Tune, run

from harness.local.gpus import VISIBLE, gpu_names, group_gpus
from harness.local.ready_queue import ReadyQueue


@pytest.mark.parametrize(
    ("count", "given", "expected"),
    [
        (3, None, ("0", "1", "2")),
        (0, None, ()),
        (2, "4,7", ("4", "7")),
        (1, "3,-1,5", ("3",)),
        (2, "GPU-8932f937, GPU-e7b4a1c0", ("GPU-8932f937", "GPU-e7b4a1c0")),
        # CUDA shows a process the first instance only.
        (1, "MIG-a,MIG-b,MIG-b,MIG-c", ("MIG-a", "MIG-b", "MIG-c")),
        (0, "MIG-a", ()),
        (0, "", ()),
        (0, "-1", ()),
    ],
)
def test_gpus_keep_the_names_that_the_process_was_given(count, given, expected) -> None:
    assert gpu_names(count, given) == expected


def test_gpus_are_grouped_for_workers_of_several_processes() -> None:
    assert group_gpus(("4", "7", "GPU-x"), 1) == ("4", "7", "GPU-x")
    assert group_gpus(("0", "1", "2", "3", "4"), 2) == ("0,1", "2,3")
    assert group_gpus(("0", "1"), 3) == ()


def test_workers_are_spread_over_the_gpus_round_robin(root, store) -> None:
    base = Number(value=1)
    leaves = [Tune(parent=base, amount=amount, together=4) for amount in range(4)]

    outcome = run(root, leaves, workers=4, gpus=("3", "GPU-b"))

    facts = [store.manifest(leaf.key).facts for leaf in leaves]
    assert outcome.complete
    assert Counter(fact["gpus"] for fact in facts) == {"3": 2, "GPU-b": 2}
    assert {fact["workers_of_gpu"] for fact in facts} == {2}
    assert len({fact["pid"] for fact in facts}) == 4


def test_single_worker_of_another_gpu_than_the_first_has_a_process_in_which_it_is_the_only_one(
    root, store, monkeypatch
) -> None:
    monkeypatch.setattr("harness.local.executor.visible_gpus", lambda: ("4", "6"))
    first, second = (Tune(parent=Number(value=value), amount=1) for value in (1, 2))

    run(root, [first], gpus=("4",))
    run(root, [second], gpus=("6",))

    here, there = (store.manifest(leaf.key).facts for leaf in (first, second))
    assert here["pid"] == os.getpid()
    assert there["pid"] != os.getpid()
    assert there["gpus"] == "6"


class Note:
    """Notes, before the first stage of a process, what it sees and whether something imported torch before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        import os

        with self.path.open("a") as stream:
            stream.write(f"{os.environ.get(VISIBLE)} {'torch' in sys.modules}\n")


def test_worker_is_bound_before_anything_imports_torch(root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(VISIBLE, "5,6")
    leaves = [Tune(parent=Number(value=1), amount=amount, together=2) for amount in range(2)]

    run(root, leaves, workers=2, gpus=("5", "6"), initialize=Note(tmp_path / "notes"))

    assert sorted((tmp_path / "notes").read_text().splitlines()) == ["5 False", "6 False"]


def test_workers_without_gpus_see_what_this_process_sees(root, store, monkeypatch) -> None:
    monkeypatch.setenv(VISIBLE, "GPU-mine")
    leaves = [Tune(parent=Number(value=1), amount=amount) for amount in range(2)]

    run(root, leaves, workers=2)

    assert {store.manifest(leaf.key).facts["gpus"] for leaf in leaves} == {"GPU-mine"}


def test_replaced_worker_keeps_its_gpu(root, store) -> None:
    base = Number(value=1)
    broken = Add(parent=base, amount=1)
    (root).mkdir(exist_ok=True)
    (root / "trouble-1").write_text("kill")
    leaves = [Tune(parent=base, amount=amount, together=2) for amount in range(2)]
    first = run(root, [broken, *leaves], workers=2, gpus=("0", "1"))

    assert set(first.failed) == {broken.key}
    assert {store.manifest(leaf.key).facts["gpus"] for leaf in leaves} == {"0", "1"}
    assert {store.manifest(leaf.key).facts["workers_of_gpu"] for leaf in leaves} == {1}


def interleaved() -> list[Tune]:
    """Return three leaves of each of two bases, a b a b a b in the plan's order."""
    bases = [Number(value=1), Number(value=2)]
    return [Tune(parent=bases[place % 2], amount=place) for place in range(6)]


def handed_out(queue: ReadyQueue, bases: dict[int, str], idle: list[int]) -> tuple[float, int]:
    assigned = queue.next(bases, idle)
    assert assigned is not None
    return assigned.stage.amount, assigned.worker


def test_queue_gives_a_worker_what_its_base_is_loaded_for_and_then_the_rest() -> None:
    leaves = interleaved()
    queue = ReadyQueue(leaves)
    first, second = leaves[0].parent.key, leaves[1].parent.key

    order = [handed_out(queue, {0: held}, [0])[0] for held in ["", first, first, first, second, second]]

    assert order == [0, 2, 4, 1, 3, 5]
    assert queue.next({0: second}, [0]) is None


def test_queue_gives_a_second_worker_the_base_that_nobody_holds() -> None:
    leaves = interleaved()
    queue = ReadyQueue(leaves)
    first, second = leaves[0].parent.key, leaves[1].parent.key

    assert handed_out(queue, {0: "", 1: ""}, [0, 1]) == (0, 0)
    assert handed_out(queue, {0: first, 1: ""}, [1]) == (1, 1)
    # Both are idle: the first stage goes to the worker that holds its base, wherever it stands.
    assert handed_out(queue, {0: second, 1: first}, [0, 1]) == (2, 1)
    assert handed_out(queue, {0: second, 1: first}, [0]) == (3, 0)


def test_queue_lets_no_worker_idle_while_a_stage_is_ready() -> None:
    base = Number(value=1)
    leaves = [Tune(parent=base, amount=amount) for amount in range(3)]
    queue = ReadyQueue(leaves)

    assert handed_out(queue, {0: base.key, 1: "other", 2: ""}, [1, 2]) == (0, 2)
    assert handed_out(queue, {0: base.key, 1: "other", 2: base.key}, [1]) == (1, 1)
    assert handed_out(queue, {0: base.key}, [0]) == (2, 0)
    assert queue.next({0: base.key}, [0]) is None


def test_queue_spares_workers_whose_base_is_wanted_from_stages_that_load_none() -> None:
    base = Number(value=1)
    tuned, other = Tune(parent=base, amount=5), Number(value=7)
    queue = ReadyQueue([other, tuned])

    assert queue.next({0: base.key, 1: "idle"}, [0, 1]) == (other, 1)
    assert queue.next({0: base.key, 1: "idle"}, [0, 1]) == (tuned, 0)


def test_queue_takes_the_first_idle_worker_where_none_is_better() -> None:
    queue = ReadyQueue([Number(value=7), Tune(parent=Number(value=1), amount=5)])

    assert queue.next({0: "", 1: ""}, [1, 0]).worker == 1
    assert queue.next({0: "", 1: ""}, [1, 0]).worker == 1


def test_queue_keeps_the_plan_order_for_stages_of_one_base() -> None:
    base = Number(value=1)
    tuned, other, last = Tune(parent=base, amount=5), Number(value=7), Tune(parent=base, amount=6)
    queue = ReadyQueue([tuned, other, last])

    assert [queue.next({0: ""}, [0]).stage for _ in range(3)] == [tuned, other, last]


@pytest.mark.parametrize("workers", [1, 2])
def test_run_loads_each_base_once_for_each_worker_that_needs_it(root, store, workers) -> None:
    """In the plan's order one worker would load a base six times; two workers share the bases between them."""
    leaves = interleaved()

    outcome = run(root, leaves, workers=workers)

    loads = Counter(leaf.parent.key for leaf in leaves if store.manifest(leaf.key).facts["loaded"])
    assert outcome.complete
    assert set(loads) == {leaf.parent.key for leaf in leaves}
    # Whoever is done with its own base takes over stages of the other, which it then loads once.
    assert sum(loads.values()) <= 2 * workers
