"""Name clashes: external classes with the name of a built-in class, whose rows would have the same label."""

from collections.abc import Sequence
from importlib.util import find_spec

from harness.experiment.ensemble import EnsembleSettings
from harness.experiment.experiment import Experiment
from harness.experiment.fusing import Merging
from harness.protocols import Named


def name_clashes(experiments: Sequence[Experiment], ensemble: EnsembleSettings | None) -> list[str]:
    """Return a message for each external class with the name of a built-in one.

    Args:
        experiments: the experiments of a cell and of its members.
        ensemble: the settings of its ensemble, if it is one.
    """
    parts = [part for experiment in experiments for part in _parts(experiment)]
    if ensemble is not None:
        parts += [("ensembles", ensemble.method), ("judges", ensemble.voter)]
    return [
        f"`{type(part).__module__}.{type(part).__name__}` has the name `{part.name}` of "
        f"`harness.{package}.{part.name}`; their results would be confused. Give it another `name`."
        for package, part in parts
        if part is not None
        and not type(part).__module__.startswith("harness.")
        and find_spec(f"harness.{package}.{part.name}") is not None
    ]


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
