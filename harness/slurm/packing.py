"""Lines, tasks and batches: how the pending part of a plan becomes jobs of a scheduler.

A line is what one job does in order: a stage, and what only continues it. Lines whose heads are of one kind and wait
for the same stages form a batch, which a scheduler takes in one call; a task, one element of it, holds one line or,
packed, several.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from harness.engine.stage import Stage, lineage

Line = tuple[Stage, ...]
Task = tuple[Line, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """Tasks that are submitted together, independent of each other.

    Attributes:
        tasks: each is a job, or an element of an array.
        needs: keys of the pending stages outside that have to be settled before any of the tasks begins, without those
            that others of them need already.
        common: those of them without which no line of any task can run.
    """

    tasks: tuple[Task, ...]
    needs: frozenset[str]
    common: frozenset[str]

    @property
    def kind(self) -> str:
        """What the lines begin with."""
        return self.tasks[0][0][0].name

    @property
    def stages(self) -> Iterator[Stage]:
        """All stages of the batch."""
        return chain.from_iterable(line for task in self.tasks for line in task)


def batches_of(
    todo: Sequence[Stage],
    *,
    elsewhere: Collection[str],
    joins: Collection[str],
    fans: Collection[str],
    pack: Mapping[str, int],
    limit: int,
) -> list[Batch]:
    """Arrange stages into batches, so that a batch needs stages of earlier ones only.

    A stage joins the line of a parent that has no other continuation, if that line waits for everything else that the
    stage needs: then nobody waits longer because of it. Several children may join one parent if they are of one kind
    that fans out cheaply.

    Args:
        todo: the stages to run, parents before children.
        elsewhere: keys of stages that are not stored and that somebody else runs.
        joins: kinds that may go on with the line of their parents.
        fans: kinds of which several may join the line of a common parent.
        pack: how many lines a task holds, by the kind of their heads; 1 where absent.
        limit: how many tasks a batch may have.
    """
    lines, place = _lines(todo, elsewhere, joins, fans)
    unstored = place.keys() | set(elsewhere)
    needs = [_needs(line, number, place, unstored) for number, line in enumerate(lines)]
    depths: list[int] = []
    for each in needs:
        depths.append(1 + max((depths[place[key]] for key in each if key in place), default=0))
    kinds: dict[tuple[int, str], list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        kinds[depths[number], line[0].name].append(number)
    batches = []
    for (_, kind), members in sorted(kinds.items(), key=lambda item: item[0][0]):
        # Lines that wait for the same stages first share a task, then an array. Packed ones may wait for different
        # stages: at one depth none waits for another.
        first = {needs[number]: number for number in reversed(members)}
        alike = sorted(members, key=lambda number: first[needs[number]])
        groups: dict[tuple[frozenset[str], frozenset[str]], list[Task]] = defaultdict(list)
        for numbers in _portions(alike, pack.get(kind, 1)):
            wants = [needs[number] for number in numbers]
            task = tuple(lines[number] for number in numbers)
            groups[wants[0].union(*wants), wants[0].intersection(*wants)].append(task)
        batches += [Batch(part, *wait) for wait, tasks in groups.items() for part in _portions(tasks, limit)]
    return batches


def _lines(
    todo: Sequence[Stage], elsewhere: Collection[str], joins: Collection[str], fans: Collection[str]
) -> tuple[list[Line], dict[str, int]]:
    """Return the lines, and the number of each stage's line by its key."""
    children: dict[str, list[Stage]] = defaultdict(list)
    for stage in todo:
        for parent in stage.parents:
            children[parent.key].append(stage)
    unstored = {stage.key for stage in todo} | set(elsewhere)
    place: dict[str, int] = {}
    lines: list[list[Stage]] = []
    # What is there when a stage of a line begins: what the line waits for, and what it has run.
    there: list[set[str]] = []
    for stage in todo:
        ancestors = {other.key for other in lineage(stage.parents)} & unstored
        parents = [parent for parent in stage.parents if parent.key in place]
        home = max((place[parent.key] for parent in parents), default=None)
        continuation = all(
            {child.name for child in children[parent.key]} == {stage.name}
            and (len(children[parent.key]) == 1 or stage.name in fans)
            for parent in parents
            if place[parent.key] == home
        )
        if stage.name in joins and home is not None and continuation and ancestors <= there[home]:
            place[stage.key] = home
            lines[home].append(stage)
            there[home].add(stage.key)
        else:
            place[stage.key] = len(lines)
            lines.append([stage])
            there.append(ancestors | {stage.key})
    return [tuple(line) for line in lines], place


def _needs(line: Line, number: int, place: Mapping[str, int], unstored: Collection[str]) -> frozenset[str]:
    # Any ancestor counts, not only parents: a stage may read any of them.
    outside = [stage for stage in lineage(line) if stage.key in unstored and place.get(stage.key) != number]
    implied = {other.key for stage in outside for other in lineage(stage.parents)}
    return frozenset(stage.key for stage in outside if stage.key not in implied)


def _portions(items: Sequence[_T], size: int) -> list[tuple[_T, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]
