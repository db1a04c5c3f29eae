"""Builds settings and cells from composed plain data; everything is checked before anything runs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, NamedTuple, final

from harness.config.alignment_only import FINETUNE, estimator_problems
from harness.config.attacker import Attacker
from harness.config.compose import Composition, compose
from harness.config.defense_slots import GROUP, SLOTS, group_of, label, slots_without_method
from harness.config.ensemble import members_in
from harness.config.hydra_errors import HydraError, undecodable_files
from harness.config.name_clashes import name_clashes
from harness.config.objective import Objective
from harness.config.overrides import InvalidOverride, file_locator
from harness.config.sweep_overrides import several_values, without_settings_of_others
from harness.corpora.probe import PROBE, Probe
from harness.engine.build import allowed, build
from harness.engine.provenance import redacted
from harness.engine.stage import Stage
from harness.engine.tracker import TrackerSettings
from harness.errors import ConfigError, Problem
from harness.execution.cluster import Cluster
from harness.experiment.cell import Cell
from harness.experiment.chain import chain_of
from harness.experiment.ensemble import ENSEMBLE, EnsembleSettings, Member, ensemble_of
from harness.experiment.experiment import Experiment
from harness.experiment.serving import SERVE

TUNED = "tuned"
"""Group of hyperparameters tuned for a model size; a defense's YAML prefers them to its published values."""

OnInvalid = Literal["refuse", "skip"]
"""Handling of a cell with incompatible settings: reject the whole sweep, or skip the cell."""

GUARDRAIL, FUSE, NONE = "guardrail", "fuse", "none"
"""Config groups of the guardrail and of the fusion, and their option that uses none."""
FEDERATION = "federation"
"""Config group of the federation."""

ATTACK_GUARD = "attack_guard"
"""Config group of the guard that an attack crafts against; by default its option of the model's name."""

SWEEPS = "sweeps"
"""Config group of the sweep files."""

UPDATE = "update"
"""Config group of the estimator of gradients; its option ``none`` computes them."""

LABELS = ("task", "attack", "model")
"""Config groups whose choices label a row; a row is also labelled with ``attack.ratio`` and ``seed``."""


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run that do not belong to its cells; not part of any identity."""

    name: ClassVar[str] = "run"
    version: ClassVar[int] = 1
    store: str
    title: str
    objective: Objective
    cluster: Cluster
    tracker: TrackerSettings
    targets: tuple[str, ...]
    on_invalid: OnInvalid = "refuse"
    attacker: Attacker | None = None

    def problems(self) -> list[Problem]:
        """Range errors."""
        good = re.fullmatch(r"[a-z][a-z0-9_]{0,39}", self.title) and redacted([self.title]) == [self.title]
        expected = "it is used in file names; expected up to 40 lower-case letters, digits and _"
        return [] if good else [Problem("title", expected)]


RUN_SETTINGS = frozenset(item.name for item in fields(Settings)) | {TUNED}
"""Top-level settings that are not part of a cell."""


def settings_of(composition: Composition) -> Settings:
    """Build the settings of a run.

    Raises:
        ConfigError: with all problems found.
    """
    names = {item.name for item in fields(Settings)}
    data = {key: value for key, value in composition.data.items() if key in names}
    settings = build(Settings, data, where=file_locator(composition.choices))
    check_kinds(settings.cluster)
    return settings


def check_kinds(cluster: Cluster) -> None:
    """Check those settings of a cluster that refer to stage kinds.

    Raises:
        ConfigError: a kind does not exist, or does not support what is requested for it.
    """
    if problems := cluster.kind_problems(stage_kinds()):
        raise ConfigError([problem.under("cluster") for problem in problems])


def stage_kinds() -> dict[str, type[Stage]]:
    """Return the stage classes of the harness by kind."""
    return {cls.name: cls for cls in Stage.__subclasses__() if cls.__module__.startswith("harness.")}


class Skipped(NamedTuple):
    """A cell whose settings are valid by themselves but incompatible with each other.

    Attributes:
        overrides: the cell's overrides, secrets redacted.
        reasons: why its settings are incompatible.
    """

    overrides: tuple[str, ...]
    reasons: tuple[str, ...]


def cells_of(compositions: Sequence[Composition]) -> list[Cell]:
    """Build and check every cell.

    Raises:
        ConfigError: with the distinct problems of all cells and of the run's settings.
    """
    return [cell for cell in check_cells(compositions, "refuse") if isinstance(cell, Cell)]


def check_cells(compositions: Sequence[Composition], on_invalid: OnInvalid | None = None) -> list[Cell | Skipped]:
    """Build and check every cell; with ``skip``, return cells with incompatible settings as ``Skipped``.

    Args:
        compositions: one per cell.
        on_invalid: overrides the setting of this name; None reads the setting.

    Raises:
        ConfigError: with the distinct problems of all cells and of the run's settings; or no valid cell is left.
    """
    problems: dict[Problem, None] = dict.fromkeys(several_values(compositions, RUN_SETTINGS - {TUNED}))
    incompatible: dict[Problem, None] = {}
    cells: list[Cell | Skipped] = []
    built: list[Experiment] = []
    ensembles: list[EnsembleSettings] = []
    used = {
        name
        for composition in compositions
        for each in (composition, *(member for member, _ in composition.members))
        for name in each.values.keys() - {override.name for override in (*each.idle, *each.invalid)}
    }
    for composition in (without_settings_of_others(each, used, _exists) for each in compositions):
        problems |= dict.fromkeys(_explain(invalid, composition) for invalid in composition.invalid)
        # An override for an empty slot must apply to at least one cell of the sweep.
        problems |= dict.fromkeys(_explain(idle, composition) for idle in composition.idle if idle.name not in used)
        try:
            ensemble = _ensemble(composition)
            experiments = [_experiment(each) for each in (composition, *(member for member, _ in composition.members))]
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        built += experiments
        ensembles += [ensemble] if ensemble else []
        try:
            cells.append(_cell_of(composition, experiments, ensemble))
        except ConfigError as error:
            incompatible |= dict.fromkeys(error.problems)
            cells.append(Skipped(tuple(redacted(composition.overrides)), tuple(map(str, error.problems))))
    problems |= dict.fromkeys(map(Problem.of, name_clashes(built, ensembles)))
    try:
        on_invalid = on_invalid or settings_of(compositions[0]).on_invalid
    except ConfigError as error:
        problems |= dict.fromkeys(error.problems)
    if on_invalid != "skip" or not any(isinstance(cell, Cell) for cell in cells):
        problems |= incompatible
    if problems:
        raise ConfigError(list(problems))
    return cells


def _experiment(composition: Composition) -> Experiment:
    """Build the settings of a cell.

    Raises:
        ConfigError: with all problems found.
    """
    data = {name: value for name, value in composition.data.items() if _part_of(name) is Experiment}
    if without := [
        *_without_package(composition),
        *slots_without_method(data.get(GROUP), composition.values, redacted(composition.overrides)),
        *estimator_problems(composition.choices),
    ]:
        raise ConfigError(without)
    return build(Experiment, data, allow=_allowed(composition), where=file_locator(composition.choices))


def _without_package(composition: Composition) -> Iterator[Problem]:
    """Yield a problem for each chosen file of whole configurations whose content is not at the top level."""
    for group in ("experiment", SWEEPS):
        if group in composition.data and group in composition.choices:
            where = file_locator(composition.choices)(group)
            yield Problem(group, f"its settings are not at the top level; expected `# @package _global_` in `{where}`")


def _ensemble(composition: Composition) -> EnsembleSettings | None:
    """Build the settings of a cell's ensemble, if it is one.

    Raises:
        ConfigError: with all problems found.
    """
    data = composition.data.get(ENSEMBLE)
    if data is None:
        return None
    problems = [_explain(invalid, member) for member, _ in composition.members for invalid in member.invalid]
    chosen = [name for name in (GROUP, *map(group_of, SLOTS)) if _chooses(composition.overrides, name)]
    advice = f"the defenses of an ensemble are its members; expected them in `{ENSEMBLE}.members` only"
    problems += [Problem(name, advice) for name in chosen]
    if problems:
        raise ConfigError(problems)
    where = file_locator(composition.choices)
    return build(EnsembleSettings, data, path=ENSEMBLE, allow=_allowed(composition), where=where)


def _chooses(overrides: Sequence[str], group: str) -> bool:
    return any(line.partition("=")[0].lstrip("+~") == group for line in overrides)


def _cell_of(composition: Composition, experiments: Sequence[Experiment], ensemble: EnsembleSettings | None) -> Cell:
    """Return a cell; of an ensemble, with its members.

    Args:
        composition: of the cell.
        experiments: the settings of the cell and of each member.
        ensemble: the settings of the ensemble.

    Raises:
        ConfigError: settings are incompatible with each other.
    """
    first, *others = experiments
    cell = _cell(first, composition)
    if ensemble is None:
        return cell
    names = [name for name, _ in members_in(composition.data)]
    members = [
        Member(f"{name}@{experiment.seed}" if ensemble.seed_offsets else name, _cell(experiment, member), offset)
        for name, experiment, (member, offset) in zip(names, others, composition.members, strict=True)
    ]
    choice = composition.choices.get(ENSEMBLE, NONE)
    return ensemble_of(first, ensemble, ensemble.method.name if choice == NONE else choice, members, cell)


def _explain(invalid: InvalidOverride, composition: Composition) -> Problem:
    """Return the problem of an override; for a setting that exists but that no file sets, the advice to use ``++``."""
    if invalid.unknown is None:
        return invalid.problem
    where = file_locator(composition.choices)
    if _exists(invalid, composition):
        # One plus fails where an option that a sweep file sweeps does set it.
        advice = f"no file sets it, so it has to be added with `++`: `++{invalid.line}`"
        return Problem(invalid.name, f"{advice}. Or set it in `{where(invalid.name)}`.")
    return replace(invalid.problem, text=f"{invalid.problem.text} Set in `{where(invalid.unknown)}`.")


def _exists(invalid: InvalidOverride, composition: Composition) -> bool:
    """Return whether a class has the setting of an override, though no file sets it."""
    data = deepcopy(dict(composition.data))
    *parents, last = invalid.name.split(".")
    node: object = data
    for step in parents:
        node = node.get(step) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return False
    node[last] = None
    classes = (Experiment, Settings, EnsembleSettings)
    problems = [problem for cls in classes for problem in _problems_of(cls, data, composition)]
    return not any(each.path == invalid.name and each.text.startswith("unknown setting") for each in problems)


def _problems_of(cls: type, data: Mapping[str, object], composition: Composition) -> tuple[Problem, ...]:
    """Return the problems of building one of the top-level classes from its part of the data."""
    own: object = {name: value for name, value in data.items() if _part_of(name) is cls}
    if cls is EnsembleSettings:
        own = data.get(ENSEMBLE)
    try:
        build(cls, own, path=ENSEMBLE if cls is EnsembleSettings else "", allow=_allowed(composition))
    except ConfigError as error:
        return error.problems
    return ()


def _part_of(name: str) -> type | None:
    """Return the class that a top-level setting belongs to; None for one that the others only refer to."""
    if name == TUNED:
        return None
    return EnsembleSettings if name == ENSEMBLE else Settings if name in RUN_SETTINGS else Experiment


def _allowed(composition: Composition) -> tuple[str, ...]:
    targets = composition.data.get("targets")
    # A value that is not a list is reported when the run's settings are built.
    return allowed(map(str, targets) if isinstance(targets, list) else ())


def diagnose(hydra_error: HydraError, overrides: Sequence[str], config_dir: str | None) -> ConfigError:
    """Return a complete report of why Hydra rejected a command line, or Hydra's own error if there is no better one."""
    if problems := undecodable_files(config_dir):
        return ConfigError(problems)
    if hydra_error.from_plugin:
        return hydra_error
    try:
        cells_of(compose(overrides, config_dir))
    except HydraError:
        # The first error is the one of the user's command; a second may be an artifact of composing it differently.
        return hydra_error
    except ConfigError as found:
        return found
    return hydra_error


def _cell(experiment: Experiment, composition: Composition) -> Cell:
    labels: dict[str, object] = {name: composition.choices.get(name, "") for name in LABELS}
    labels["defense"] = label(composition.choices, composition.data[GROUP])
    labels |= {"ratio": experiment.attack.acting_ratio, "seed": experiment.seed}
    named = {"attack.ratio", "seed", f"{ENSEMBLE}.members"}
    swept: dict[str, object] = {
        key: value
        for key, value in composition.values.items()
        if key not in named and key.split(".")[0] not in RUN_SETTINGS - {TUNED}
    }
    chosen = {
        GUARDRAIL: experiment.guardrail,
        UPDATE: experiment.finetune.update if experiment.finetune else None,
        FUSE: experiment.fuse,
        SERVE: experiment.serve,
    }
    for group, part in chosen.items():
        if part is not None:
            # Not a label: cells without such a part keep the identity that they had before there was one.
            choice = composition.choices.get(group, NONE)
            swept[group] = part.name if choice == NONE else choice
    if experiment.finetune is None:
        swept[FINETUNE] = NONE
    acting, opened = experiment.attack.acting, experiment.attack.guard
    if acting is not None and acting.needs.guard and opened is not None:
        choice = composition.choices.get(ATTACK_GUARD, opened.name)
        if choice != composition.choices.get("model"):
            swept[ATTACK_GUARD] = choice

    if (federation := experiment.federation) is not None:
        swept[FEDERATION] = composition.choices.get(FEDERATION, NONE)
        swept[f"{FEDERATION}.aggregate"] = federation.aggregate.name

    def asked(probe: Probe | None) -> Cell:
        return Cell(
            labels=labels,
            swept=swept if probe is None else {**swept, PROBE: probe.label},
            protocol=experiment.protocol(probe),
            stages=chain_of(experiment, probe),
            overrides=composition.overrides,
        )

    return replace(asked(None), probes=tuple(asked(probe) for _, probe in experiment.probes))
