"""The method at inference of an experiment: the stage of its calibration, and what it cannot be combined with."""

from harness.corpora.encode import Encoding
from harness.corpora.probe import Probe
from harness.corpora.slices import OneAnswer, Slice
from harness.errors import Problem
from harness.experiment.experiment import Experiment
from harness.protocols import Calibration, DataRequirement, MeasuredTask
from harness.stages.calibrate import Calibrate
from harness.stages.inputs import ModelStage

SERVE = "serve"
"""Name of the settings in the configuration."""


def calibrate_of(
    experiment: Experiment, aligned: ModelStage, final: ModelStage, probe: Probe | None
) -> Calibrate | None:
    """Return the stage of what the method learns; None if there is no method, or nothing to learn.

    Args:
        experiment: the settings of the cell.
        aligned: the aligned model.
        final: the model that is served.
        probe: as for the chain.
    """
    method = experiment.serve.calibration if experiment.serve is not None else None
    if method is None:
        return None
    return Calibrate(
        model=aligned if method.on_aligned else final,
        method=method,
        examples=tuple(_slice(experiment, need) for need in method.needs),
        encoding=_deployed(experiment, probe),
        seed=experiment.seed,
    )


def unservable(experiment: Experiment) -> list[Problem]:
    """Return why the method cannot act on the answers of the experiment."""
    method = experiment.serve
    if method is None:
        return []
    found = []
    if experiment.evaluation.decoding.engine is not None:
        reason = (
            f"`{method.name}` acts inside the model while it answers, which {experiment.evaluation.decoding.engine} "
            "does not allow: it generates in another process; expected null, the built-in decoding"
        )
        found.append(Problem("evaluation.decoding.engine", reason))
    if isinstance(experiment.task, MeasuredTask):
        reason = (
            f"a benchmark runs the model itself, and `{method.name}` acts on generated answers only; expected a task "
            "with prompts"
        )
        found.append(Problem("task", reason))
    if method.calibration is not None:
        found += _unlearnable(experiment, method.name, method.calibration)
    return found


def _unlearnable(experiment: Experiment, name: str, calibration: Calibration) -> list[Problem]:
    """Return why the corpus does not have the examples of a calibration."""
    found = []
    for need in calibration.needs:
        origin = _slice(experiment, need).origin
        if need.paired and isinstance(origin, OneAnswer):
            reason = (
                f"`{name}` compares a harmful answer with a refusal of the same prompt, but no example of "
                f"`{origin.name}` has both; expected a corpus with refusals, such as `corpus=beavertails`"
            )
            found.append(Problem(SERVE, reason))
    return found


def _slice(experiment: Experiment, need: DataRequirement) -> Slice:
    return experiment.corpus.slice(need.role, need.rows)


def _deployed(experiment: Experiment, probe: Probe | None) -> Encoding:
    """Return how the provider's own prompts are asked: without what an attack's probe adds to them."""
    ours = [each for path, each in experiment.probes if path.startswith("defense.")]
    return experiment.asked(probe if probe in ours else None)
