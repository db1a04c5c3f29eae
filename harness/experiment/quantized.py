"""What is refused with a 4-bit base, checked before anything runs.

Its matrices are quantized and packed: an adapter on them is trained like any other, but nothing can be merged into
them, and they can neither be trained nor read.
"""

from harness.errors import Problem
from harness.experiment.experiment import Experiment
from harness.experiment.settings import FinetuneSettings
from harness.models.adapter import Lora
from harness.models.quantized import form_of
from harness.models.trained_weights import TrainedWeights
from harness.protocols import Named, ReadsBaseWeights

Trained = Lora | TrainedWeights


def unquantizable(experiment: Experiment) -> list[Problem]:
    """Return why an experiment cannot have a 4-bit base; nothing if it has none, or can."""
    form = form_of(experiment.model.source)
    if form is None:
        return []
    tuning = experiment.finetune
    parts: list[tuple[str, Named | None]] = [
        ("defense.align", experiment.defense.align),
        ("defense.finetune", experiment.defense.finetune),
        ("defense.repair", experiment.defense.repair),
        ("fuse", experiment.fuse),
    ]
    found = [
        Problem(
            path,
            f"`{part.name}` reads the base's matrices, which are packed in {form.upper()}: it {part.base_weights}; "
            "expected another choice, or `model.source.quantized=null`",
        )
        for path, part in parts
        if isinstance(part, ReadsBaseWeights)
    ]
    found += _untrainable("align.adapter", experiment.align.adapter, form)
    if tuning is not None:
        if tuning.adapter == "double" and tuning.fresh is not None:
            found += _untrainable("finetune.fresh", tuning.fresh, form)
        if _merges(experiment.align.adapter, tuning):
            reason = (
                f"`double` merges the aligned adapter into the base, and the sum would have to be quantized again "
                f"({form.upper()}). Set `finetune.adapter=single`, or `model.source.quantized=null`"
            )
            found.append(Problem("finetune.adapter", reason))
    if experiment.tamper is not None:
        reason = (
            f"`{experiment.tamper.name}` merges the aligned adapter into the base and changes its matrices, which is "
            f"impossible in {form.upper()}; expected another attack, or `model.source.quantized=null`"
        )
        found.append(Problem("tamper", reason))
    if experiment.evaluation.decoding.engine == "vllm":
        reason = (
            f"vLLM would load the base without quantizing it as in training ({form.upper()}); expected null, the "
            "built-in decoding"
        )
        found.append(Problem("evaluation.decoding.engine", reason))
    return found


def _untrainable(path: str, trained: Trained, form: str) -> list[Problem]:
    """Return why something cannot be trained on a 4-bit base."""
    if isinstance(trained, TrainedWeights) and not trained.nothing:
        reason = f"weights in {form.upper()} cannot be trained; expected an adapter, or `model.source.quantized=null`"
        return [Problem(path, reason)]
    if isinstance(trained, Lora) and trained.variant is not None:
        reason = (
            f"`{trained.variant}` starts from the norms of the rows of the base's matrices, which are packed in "
            f"{form.upper()}; expected null"
        )
        return [Problem(f"{path}.variant", reason)]
    return []


def _merges(aligned: Trained, tuning: FinetuneSettings) -> bool:
    """Return whether a fine-tuning merges the aligned adapter."""
    if tuning.adapter != "double" or not isinstance(aligned, Lora):
        return False
    return not (isinstance(tuning.fresh, TrainedWeights) and tuning.fresh.nothing)
