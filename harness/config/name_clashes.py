"""Name clashes: external classes with the name of another class, whose results would be taken for theirs."""

from collections.abc import Iterator, Sequence

from harness.engine.classes import classes_named
from harness.engine.external import path_of
from harness.experiment.ensemble import EnsembleSettings
from harness.experiment.experiment import Experiment
from harness.experiment.fusing import Merging
from harness.protocols import Named


def name_clashes(experiments: Sequence[Experiment], ensembles: Sequence[EnsembleSettings]) -> Iterator[str]:
    """Yield a message for each external class with the name of a built-in one, or of another one in the same place.

    Args:
        experiments: the experiments of all cells of a sweep and of their members.
        ensembles: the settings of the ensembles among them.
    """
    owners = [("experiment", _parts(each)) for each in experiments]
    owners += [("ensemble", [("ensembles", each.method), ("judges", each.voter)]) for each in ensembles]
    seen: dict[tuple[str, int, str], str] = {}
    for owner, parts in owners:
        for place, (folder, part) in enumerate(parts):
            if part is None or type(part).__module__.startswith("harness."):
                continue
            path = path_of(type(part))
            first = seen.setdefault((owner, place, part.name), path)
            for other in [*classes_named(folder, part.name), *([first] if first != path else [])]:
                yield (
                    f"`{path}` has the name `{part.name}` of `{other}`; their results would be confused. "
                    "Give it another `name`."
                )


def _parts(experiment: Experiment) -> list[tuple[str, Named | None]]:
    """Return the exchangeable parts of an experiment, each with the package of the built-in ones."""
    defense = experiment.defense
    return [
        *(("defenses", method) for method in (defense.align, defense.finetune, defense.repair)),
        *(("tasks", experiment.task), ("judges", experiment.judge), ("attacks", experiment.attack.method)),
        ("attacks", experiment.tamper),
        ("judges", experiment.guardrail),
        ("fusions", experiment.fuse.method if isinstance(experiment.fuse, Merging) else None),
        ("judges", experiment.attack.guard),
        ("estimators", experiment.finetune.update if experiment.finetune else None),
        ("judges", experiment.over_refusal.judge if experiment.over_refusal else None),
        ("serving", experiment.serve),
        ("aggregators", experiment.federation.aggregate if experiment.federation else None),
    ]
