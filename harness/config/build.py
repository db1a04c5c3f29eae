"""From composed plain data to objects: everything is built and checked before anything runs."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import ClassVar, Literal, NamedTuple, final

from harness.config.compose import Composition, compose
from harness.config.defense_slots import GROUP, label, methodless
from harness.config.hydra_errors import Refusal, unreadable
from harness.config.objective import Objective
from harness.config.overrides import Misfit, place_in
from harness.engine.build import allowed, build
from harness.engine.provenance import redacted
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, Problem
from harness.execution.cluster import Cluster
from harness.experiment.cell import Cell
from harness.experiment.chain import chain_of
from harness.experiment.experiment import Experiment
from harness.protocols import Named

TUNED = "tuned"
"""Hyperparameters chosen for a size of model, where the YAML of a defense looks before its published values."""

OnInvalid = Literal["refuse", "skip"]
"""What becomes of a sweep with a cell whose settings do not go together."""

LABELS = ("task", "attack", "model")
"""Config groups whose choice names a row; a row also carries ``attack.ratio`` and ``seed``."""


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run needs beside its cells: none of it is identity."""

    name: ClassVar[str] = "run"
    version: ClassVar[int] = 1
    store: str
    title: str
    objective: Objective
    cluster: Cluster
    tracker: TrackerSettings
    targets: tuple[str, ...]
    on_invalid: OnInvalid = "refuse"

    def problems(self) -> list[Problem]:
        """Range errors."""
        good = re.fullmatch(r"[a-z][a-z0-9_]{0,39}", self.title) and redacted([self.title]) == [self.title]
        return [] if good else [Problem("title", "it names files; expected up to 40 lower-case letters, digits and _")]


OUTSIDE = frozenset(item.name for item in fields(Settings)) | {TUNED}
"""Top-level settings that no cell reads."""


def settings_of(composition: Composition) -> Settings:
    """Build what a run needs beside its cells.

    Raises:
        ConfigError: with all problems found.
    """
    names = {item.name for item in fields(Settings)}
    data = {key: value for key, value in composition.data.items() if key in names}
    where = place_in(composition.choices)
    settings = build(Settings, data, where=where)
    check_kinds(settings.cluster)
    return settings


def check_kinds(cluster: Cluster) -> None:
    """Check what a cluster's settings say of kinds of stages.

    Raises:
        ConfigError: they name a kind that there is not, or ask of one what it cannot do.
    """
    if problems := cluster.kind_problems(stage_kinds()):
        raise ConfigError([problem.under("cluster") for problem in problems])


def stage_kinds() -> dict[str, type[Stage]]:
    """Return the kinds of stages that a cell may have, by name."""
    return {cls.name: cls for cls in Stage.__subclasses__() if cls.__module__.startswith("harness.")}


class Skipped(NamedTuple):
    """A cell that cannot be, though each of its settings is right.

    Attributes:
        overrides: what the user wrote to get it, without secrets.
        reasons: why its settings do not go together.
    """

    overrides: tuple[str, ...]
    reasons: tuple[str, ...]


def cells_of(compositions: Sequence[Composition]) -> list[Cell]:
    """Build and check every cell.

    Raises:
        ConfigError: with the problems of all cells and of what is beside them, each told once.
    """
    return [cell for cell in examined(compositions, "refuse") if isinstance(cell, Cell)]


def examined(compositions: Sequence[Composition], on_invalid: OnInvalid | None = None) -> list[Cell | Skipped]:
    """Build and check every cell; leave out those that cannot be, if the settings say so.

    Args:
        compositions: one for each cell.
        on_invalid: what becomes of a cell whose settings do not go together; None asks the settings.

    Raises:
        ConfigError: with the problems of all cells and of what is beside them, each told once; or no cell is left.
    """
    problems: dict[Problem, None] = {}
    impossible: dict[Problem, None] = {}
    cells: list[Cell | Skipped] = []
    idle_names = [{misfit.name for misfit in composition.idle} for composition in compositions]
    used = {
        name
        for idle, composition in zip(idle_names, compositions, strict=True)
        for name in composition.values.keys() - idle
    }
    for composition in compositions:
        problems |= dict.fromkeys(_explained(misfit, composition) for misfit in composition.misfits)
        # Somewhere in the sweep it has to mean something.
        problems |= dict.fromkeys(_explained(idle, composition) for idle in composition.idle if idle.name not in used)
        data = {key: value for key, value in composition.data.items() if key not in OUTSIDE}
        if empty := methodless(data.get(GROUP), composition.values, redacted(composition.overrides)):
            problems |= dict.fromkeys(empty)
            continue
        try:
            experiment = build(Experiment, data, allow=_allowed(composition), where=place_in(composition.choices))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        problems |= dict.fromkeys(Problem.of(stated) for stated in _namesakes(experiment))
        try:
            cells.append(_cell(experiment, composition))
        except ConfigError as error:
            impossible |= dict.fromkeys(error.problems)
            cells.append(Skipped(tuple(redacted(composition.overrides)), tuple(map(str, error.problems))))
    try:
        on_invalid = on_invalid or settings_of(compositions[0]).on_invalid
    except ConfigError as error:
        problems |= dict.fromkeys(error.problems)
    if on_invalid != "skip" or not any(isinstance(cell, Cell) for cell in cells):
        problems |= impossible
    if problems:
        raise ConfigError(list(problems))
    return cells


def _explained(misfit: Misfit, composition: Composition) -> Problem:
    """Return what is wrong with a value that fits nowhere; a setting that a class has, but no file sets, is added."""
    if misfit.unknown is None:
        return misfit.problem
    where = place_in(composition.choices)
    data = deepcopy(dict(composition.data))
    *parents, last = misfit.name.split(".")
    node: object = data
    for step in parents:
        node = node.get(step) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node[last] = None
        refusals = [problem for cls in (Experiment, Settings) for problem in _refusals(cls, data, composition)]
        if not any(each.path == misfit.name and each.text.startswith("unknown setting") for each in refusals):
            advice = f"no file sets it, so it is added and not changed: `+{misfit.line}`"
            return Problem(misfit.name, f"{advice}. Or set it in `{where(misfit.name)}`.")
    return replace(misfit.problem, text=f"{misfit.problem.text} Set in `{where(misfit.unknown)}`.")


def _refusals(cls: type, data: Mapping[str, object], composition: Composition) -> tuple[Problem, ...]:
    ours = {name: value for name, value in data.items() if (name in OUTSIDE - {TUNED}) == (cls is Settings)}
    ours.pop(TUNED, None)
    try:
        build(cls, ours, allow=_allowed(composition))
    except ConfigError as error:
        return error.problems
    return ()


def _allowed(composition: Composition) -> tuple[str, ...]:
    targets = composition.data.get("targets")
    # What is no list is told with the other settings of its kind.
    return allowed(map(str, targets) if isinstance(targets, list) else ())


def _namesakes(experiment: Experiment) -> list[str]:
    """Return which classes from outside call themselves as one of ours does: their results would be taken for its."""
    defense = experiment.defense
    parts: list[tuple[str, Named | None]] = [
        *(("defenses", method) for method in (defense.align, defense.finetune, defense.repair)),
        *(("tasks", experiment.task), ("judges", experiment.judge), ("attacks", experiment.attack.method)),
    ]
    return [
        f"`{type(part).__module__}.{type(part).__name__}` calls itself `{part.name}`, as `harness.{shelf}.{part.name}` "
        "does; their results would be mixed up. Give it another `name`."
        for shelf, part in parts
        if part is not None
        and not type(part).__module__.startswith("harness.")
        and find_spec(f"harness.{shelf}.{part.name}") is not None
    ]


def diagnosed(refusal: Refusal, overrides: Sequence[str], config_dir: str | None) -> ConfigError:
    """Return why Hydra refused a command line, in our words and complete where we can find out."""
    if problems := unreadable(config_dir):
        return ConfigError(problems)
    if refusal.of_a_plugin:
        return refusal
    try:
        cells_of(compose(overrides, config_dir))
    except Refusal:
        # A second one is no better than the first, and may be of what was right where the first was met.
        return refusal
    except ConfigError as found:
        return found
    return refusal


def _cell(experiment: Experiment, composition: Composition) -> Cell:
    labels: dict[str, object] = {name: composition.choices.get(name, "") for name in LABELS}
    labels["defense"] = label(composition.choices, composition.data[GROUP])
    labels |= {"ratio": experiment.attack.acting_ratio, "seed": experiment.seed}
    named = {"attack.ratio", "seed"}
    return Cell(
        labels=labels,
        swept={
            key: value
            for key, value in composition.values.items()
            if key not in named and key.split(".")[0] not in OUTSIDE - {TUNED}
        },
        protocol=experiment.protocol(),
        stages=chain_of(experiment),
        overrides=composition.overrides,
    )
