"""What cannot be done with a base in four bits, checked before anything runs.

Its matrices are rounded to 16 values, so nothing can be merged into them, trained in them, or read from them. An
adapter on them works like any other.
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
    """Return why the base of an experiment cannot be in four bits; nothing if it is not, or can be."""
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
            f"`{part.name}` reads the weights of the base: it {part.base_weights}. In {form.upper()} these are packed; "
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
                f"`double` merges the aligned adapter into the base, where in {form.upper()} the sum would have to be "
                "rounded to 16 values per block; expected `single`, or `model.source.quantized=null`"
            )
            found.append(Problem("finetune.adapter", reason))
    if experiment.tamper is not None:
        reason = (
            f"`{experiment.tamper.name}` changes matrices of the aligned model, whose adapter is merged into the base "
            f"for it; in {form.upper()} neither is possible; expected null, or `model.source.quantized=null`"
        )
        found.append(Problem("tamper", reason))
    if experiment.evaluation.decoding.engine == "vllm":
        reason = (
            f"vLLM would quantize the base in another way, or not at all, where adapters are trained on it "
            f"in {form.upper()}; expected null, the built-in decoding"
        )
        found.append(Problem("evaluation.decoding.engine", reason))
    return found


def _untrainable(path: str, trained: Trained, form: str) -> list[Problem]:
    """Return why something cannot be trained on a base in four bits."""
    if isinstance(trained, TrainedWeights) and not trained.nothing:
        reason = (
            f"a model's own weights are float32 while they are trained, which they are not in {form.upper()}; "
            "expected an adapter, or `model.source.quantized=null`"
        )
        return [Problem(path, reason)]
    if isinstance(trained, Lora) and trained.variant is not None:
        reason = (
            f"the variant `{trained.variant}` starts from the norms of the rows of the base's matrices, which are "
            f"packed in {form.upper()}; expected null"
        )
        return [Problem(f"{path}.variant", reason)]
    return []


def _merges(aligned: Trained, tuning: FinetuneSettings) -> bool:
    """Return whether a fine-tuning merges an aligned adapter."""
    if tuning.adapter != "double" or not isinstance(aligned, Lora):
        return False
    return not (isinstance(tuning.fresh, TrainedWeights) and tuning.fresh.nothing)
