"""Packing: arranges the pending stages of a plan into jobs and job arrays.

A chain is what one job runs in order: a stage, and the descendants fused into its job. A job runs one chain or, packed,
several. Jobs whose chains begin with the same kind of stage and wait for the same stages are submitted as one array.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.engine.stage import Stage, lineage

Chain = tuple[Stage, ...]
Job = tuple[Chain, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class JobArray:
    """Independent jobs that are submitted in one call; a single one is not an array for Slurm.

    Attributes:
        jobs: the chains that each job runs.
        needs: keys of the pending stages that must end before any of the jobs starts; ancestors of other needs are
            omitted.
        common: the needs that all chains of all jobs share.
    """

    jobs: tuple[Job, ...]
    needs: frozenset[str]
    common: frozenset[str]

    @property
    def kind(self) -> str:
        """The kind of stage that the chains begin with."""
        return self.jobs[0][0][0].name

    @property
    def stages(self) -> Iterator[Stage]:
        """All stages of the array."""
        return itertools.chain.from_iterable(chain for job in self.jobs for chain in job)


def arrange_jobs(
    todo: Sequence[Stage],
    *,
    queued: Collection[str],
    fuse: Collection[str],
    fuse_siblings: Collection[str],
    chains_per_job: Mapping[str, int],
    limit: int,
) -> list[JobArray]:
    """Arrange stages into job arrays, so that an array needs only stages of earlier ones.

    A stage is fused into the chain of its parent if the parent has no other child, and if the chain already waits for
    everything else that the stage needs: fusing then delays no stage. Several children of one parent may be fused if
    they are all of one kind in ``fuse_siblings``.

    Args:
        todo: the stages to run, parents before children.
        queued: keys of stages that are not stored and that other jobs run.
        fuse: kinds that may be fused into the chain of a parent.
        fuse_siblings: kinds of which several may be fused into the chain of a common parent.
        chains_per_job: number of chains per job, by the kind that they begin with; 1 if absent.
        limit: maximum number of jobs in an array.
    """
    chains, chain_of = _chains(todo, queued, fuse, fuse_siblings)
    unstored = chain_of.keys() | set(queued)
    needs = [_needs(chain, index, chain_of, unstored) for index, chain in enumerate(chains)]
    depths: list[int] = []
    for keys in needs:
        depths.append(1 + max((depths[chain_of[key]] for key in keys if key in chain_of), default=0))
    by_depth_and_kind: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, chain in enumerate(chains):
        by_depth_and_kind[depths[index], chain[0].name].append(index)
    arrays = []
    for (_, kind), members in sorted(by_depth_and_kind.items(), key=lambda item: item[0][0]):
        # Chains with equal needs share a job first, and then an array. Chains of one job may have different needs:
        # chains of one depth never wait for each other.
        first = {needs[index]: index for index in reversed(members)}
        by_needs = sorted(members, key=lambda index: first[needs[index]])
        groups: dict[tuple[frozenset[str], frozenset[str]], list[Job]] = defaultdict(list)
        for indices in _slices(by_needs, chains_per_job.get(kind, 1)):
            job = tuple(chains[index] for index in indices)
            all_needs = [needs[index] for index in indices]
            groups[all_needs[0].union(*all_needs), all_needs[0].intersection(*all_needs)].append(job)
        arrays += [JobArray(part, *key) for key, jobs in groups.items() for part in _slices(jobs, limit)]
    return arrays


def _chains(
    todo: Sequence[Stage], queued: Collection[str], fuse: Collection[str], fuse_siblings: Collection[str]
) -> tuple[list[Chain], dict[str, int]]:
    """Return the chains, and the index of each stage's chain by the stage's key."""
    children: dict[str, list[Stage]] = defaultdict(list)
    for stage in todo:
        for parent in stage.parents:
            children[parent.key].append(stage)
    unstored = {stage.key for stage in todo} | set(queued)
    chain_of: dict[str, int] = {}
    chains: list[list[Stage]] = []
    # Keys of the stages that have ended when the next stage of a chain starts: those it waited for, and its own.
    ended: list[set[str]] = []
    for stage in todo:
        ancestors = {other.key for other in lineage(stage.parents)} & unstored
        parents = [parent for parent in stage.parents if parent.key in chain_of]
        target = max((chain_of[parent.key] for parent in parents), default=None)
        no_other_children = all(
            {child.name for child in children[parent.key]} == {stage.name}
            and (len(children[parent.key]) == 1 or stage.name in fuse_siblings)
            for parent in parents
            if chain_of[parent.key] == target
        )
        if stage.name in fuse and target is not None and no_other_children and ancestors <= ended[target]:
            chain_of[stage.key] = target
            chains[target].append(stage)
            ended[target].add(stage.key)
        else:
            chain_of[stage.key] = len(chains)
            chains.append([stage])
            ended.append(ancestors | {stage.key})
    return [tuple(chain) for chain in chains], chain_of


def _needs(chain: Chain, index: int, chain_of: Mapping[str, int], unstored: Collection[str]) -> frozenset[str]:
    # All ancestors, not only parents: a stage may read any of them.
    outside = [stage for stage in lineage(chain) if stage.key in unstored and chain_of.get(stage.key) != index]
    implied = {other.key for other in lineage(tuple(parent for stage in outside for parent in stage.parents))}
    return frozenset(stage.key for stage in outside if stage.key not in implied)


def _slices(items: Sequence[_T], size: int) -> list[tuple[_T, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]
