"""Compatibility of a method with the adapter and the data of its slot, checked before anything runs."""

from collections.abc import Sequence

from harness.corpora.slices import CarriesThoughts, OneAnswer, Slice
from harness.corpora.thoughts import Thoughts
from harness.errors import Problem
from harness.generation.decoding import Decoding
from harness.models.adapter import ALL_LINEAR, Lora
from harness.models.trained_weights import TrainedWeights
from harness.protocols import (
    AsksForGradients,
    ComparesPasses,
    DataRequirement,
    Estimator,
    Named,
    NeedsFreshAdapter,
    NeedsPlainLora,
    TrainMethod,
    TrainsWeights,
    UsesAlignment,
)
from harness.training.budget import Budget, Optimizer

Trained = Lora | TrainedWeights
"""What a stage trains."""


def unserved(decoding: Decoding, adapters: Sequence[Trained], thoughts: Thoughts | None) -> list[Problem]:
    """Return why a cell cannot be decoded: the engine has no such adapters or decoding, or thoughts have no markers."""
    found = []
    if decoding.thought is not None and thoughts is None:
        reason = "the encoding has no markers of thoughts and answers; expected null, or `thoughts=s1`"
        found.append(Problem("evaluation.decoding.thought", reason))
    if decoding.engine != "vllm":
        return found
    if any(_variant(adapter) is not None for adapter in adapters):
        reason = "vLLM does not support DoRA adapters (`adapter.variant=dora`); expected null, the built-in decoding"
        found.append(Problem("evaluation.decoding.engine", reason))
    for name, setting in (("thought", decoding.thought), ("sampling", decoding.sampling)):
        if setting is not None:
            reason = f"vLLM decodes greedily and without forced answers here, but `{name}` is set; expected null"
            found.append(Problem(f"evaluation.decoding.{name}", reason))
    return found


def unmarked(sources: Sequence[Named], thoughts: Thoughts | None) -> list[Problem]:
    """Return why rows cannot be encoded: they have thoughts, for which the encoding has no markers.

    Args:
        sources: the sources of the rows that are trained on.
        thoughts: the markers; None if there are none.
    """
    if thoughts is not None:
        return []
    return [
        Problem(
            "model.encoding.thoughts",
            f"the rows of `{source.name}` have thoughts, but the encoding has no markers for them; expected some. Set "
            "`thoughts=s1`, or the markers of the model",
        )
        for source in sources
        if isinstance(source, CarriesThoughts) and source.carries_thoughts
    ]


def untrainable(
    aligned: Trained, tuned: Trained, protocol: str, repair: Named | None, *, federated: bool
) -> list[Problem]:
    """Return why what is to be trained does not fit together.

    Args:
        aligned: what the alignment trains.
        tuned: what the fine-tuning trains.
        protocol: whether the fine-tuning continues the training of the alignment.
        repair: the method in the repair slot.
        federated: whether the clients of a federation fine-tune.
    """
    found = []
    if federated and isinstance(tuned, TrainedWeights):
        reason = "clients of a federation train and send adapters; expected an adapter in `finetune.fresh`"
        found.append(Problem("finetune.fresh", reason))
    if _nothing(aligned) and protocol == "single":
        reason = (
            "`single` continues the training of the alignment, which trains nothing (`align.adapter=none`); expected "
            "`double`, and in `finetune.fresh` what is trained"
        )
        found.append(Problem("finetune.adapter", reason))
    elif _nothing(aligned) and _nothing(tuned):
        reason = "neither alignment nor fine-tuning trains anything; expected an adapter or `full` in one of them"
        found.append(Problem("finetune.fresh", reason))
    if repair is not None and _nothing(tuned):
        reason = f"`{repair.name}` repairs a fine-tuned model, but `finetune.fresh=none` trains nothing; expected null"
        found.append(Problem("defense.repair", reason))
    return found


def unobservable(leakage: Named | None, method: TrainMethod | None, tuned: Trained) -> list[Problem]:
    """Return why the gradients of a fine-tuning's first step cannot be observed.

    Args:
        leakage: the probe; None observes nothing.
        method: the defense in the slot ``finetune``.
        tuned: what the fine-tuning trains.
    """
    if leakage is None:
        return []
    if isinstance(tuned, TrainedWeights):
        reason = f"`{leakage.name}` observes the gradients of an adapter; expected one in `finetune.fresh`"
        return [Problem("leakage", reason)]
    if method is not None and isinstance(method, NeedsFreshAdapter):
        reason = f"`{method.name}` starts from an adapter of its own, which `{leakage.name}` does not; expected null"
        return [Problem("leakage", reason)]
    return []


def unestimated(
    update: Estimator | None, method: TrainMethod | None, budget: Budget, adapter: Trained
) -> list[Problem]:
    """Return why fine-tuning cannot run on estimated gradients, as far as this can be checked without a model.

    Args:
        update: the estimator; None computes gradients.
        method: the defense in the slot ``finetune``.
        budget: the budget of the fine-tuning.
        adapter: the adapter, or the weights, that are trained.
    """
    if update is None:
        return []
    found = []
    if budget.max_grad_norm is not None:
        reason = (
            f"{budget.max_grad_norm:g} would scale every estimate of `{update.name}`, whose norm is about the square "
            "root of the number of trained parameters times that of a gradient; expected null"
        )
        found.append(Problem("finetune.budget.max_grad_norm", reason))
    if update.keeps_moments and budget.optimizer is not Optimizer.SGD:
        reason = f"`{update.name}` keeps moments of its own, which AdamW would normalize once more; expected `sgd`"
        found.append(Problem("finetune.budget.optimizer", reason))
    if isinstance(adapter, Lora) and adapter.dropout > 0:
        reason = (
            f"`{update.name}` compares two forward passes on the same batch, but the adapter has dropout "
            f"{adapter.dropout}; expected 0. {_setting('dropout=0', 'finetune')}"
        )
        found.append(Problem("finetune.update", reason))
    if method is not None and not isinstance(method, AsksForGradients):
        reason = (
            f"`{method.name}` asks the model for more than gradients of plain losses at the current weights, which is "
            f"all that `{update.name}` estimates; expected another method, or `update=none`"
        )
        found.append(Problem("defense.finetune", reason))
    elif method is not None and update.keeps_moments and method.gradients_per_step > 1:
        reason = (
            f"`{method.name}` asks for {method.gradients_per_step} gradients per step, but `{update.name}` keeps "
            "moments of one; expected a form without moments"
        )
        found.append(Problem("defense.finetune", reason))
    return found


def incompatibilities(
    slot: str, method: Named, adapter: Trained, aligned: Trained, data: Sequence[tuple[DataRequirement, Slice]]
) -> list[Problem]:
    """Return why a method cannot be used in its slot, as far as this can be checked without loading a model.

    Args:
        slot: slot of the defense.
        method: the method in that slot.
        adapter: the adapter, or the weights, that are trained in the slot.
        aligned: those of the alignment.
        data: the method's data requirements, each with the examples that are available for it.
    """
    found = []
    if isinstance(adapter, TrainedWeights):
        found += _unusable_weights(slot, method, adapter)
    elif isinstance(method, ComparesPasses) and adapter.dropout > 0:
        found.append(
            f"`{method.name}` compares several forward passes on the same batch, but its adapter has dropout "
            f"{adapter.dropout}; expected 0. {_setting('dropout=0', slot)}"
        )
    if isinstance(method, NeedsPlainLora) and (variant := _variant(adapter)) is not None:
        found.append(
            f"`{method.name}` changes the factors of plain LoRA, but its adapter is of the variant "
            f"`{variant}`, which has other trainable parameters; expected null. "
            f"{_setting('variant=null', slot)}"
        )
    if isinstance(method, UsesAlignment) and isinstance(adapter, Lora):
        found += _unusable_alignment(method.name, adapter, aligned)
    for need, rows in data:
        if need.paired and isinstance(rows.origin, OneAnswer):
            found.append(
                f"`{method.name}` needs harmful examples with a refusal for the same prompt, but no example of "
                f"`{rows.origin.name}` has both; expected a corpus with refusals, such as `corpus=beavertails`"
            )
        least = need.disjoint_batches * (need.batch_size or 1)
        if need.disjoint_batches > 1 and rows.rows < least:
            found.append(
                f"`{method.name}` samples {need.disjoint_batches} disjoint batches of {need.batch_size} examples, but "
                f"has only {rows.rows} of `corpus.{need.role}`; expected at least {least}. Use fewer or smaller batches"
            )
    return [Problem(f"defense.{slot}", reason) for reason in found]


def _unusable_weights(slot: str, method: Named, trained: TrainedWeights) -> list[str]:
    """Return why a method cannot be used where a model's own weights are trained, or nothing."""
    place = "align.adapter" if slot == "align" else "finetune.fresh"
    if trained.nothing:
        return [f"`{method.name}` needs a training, but `{place}=none` trains nothing; expected null"]
    if isinstance(method, TrainsWeights):
        return []
    if isinstance(method, UsesAlignment):
        reason = "uses the change of the weights by alignment as a product of two factors"
    elif isinstance(method, NeedsPlainLora):
        reason = "reads or changes the two factors of an adapter"
    else:
        reason = "does not say how many copies of the weights it keeps (`weight_copies`)"
    where = "in `align.adapter`"
    if slot != "align":
        where += ", or with `finetune.adapter=double` in `finetune.fresh`"
    return [f"`{method.name}` {reason}, so it cannot train a model's own weights; expected an adapter {where}"]


def _nothing(trained: Trained) -> bool:
    return isinstance(trained, TrainedWeights) and trained.nothing


def _variant(trained: Trained) -> str | None:
    return trained.variant if isinstance(trained, Lora) else None


def _unusable_alignment(method: str, adapter: Lora, aligned: Trained) -> list[str]:
    """Return why a method cannot use the change of the weights by alignment."""
    if isinstance(aligned, TrainedWeights):
        return [
            f"`{method}` uses the change of the weights by alignment as a product of two factors, but the alignment "
            "trains no adapter; expected one in `align.adapter`"
        ]
    found = []
    if aligned.variant is not None and adapter.variant is None:
        found.append(
            f"`{method}` uses the change of the weights by alignment as a product of two factors, but the aligned "
            f"adapter is of the variant `{aligned.variant}`; expected null. Set `align.adapter.variant=null`"
        )
    if adapter.targets != ALL_LINEAR and (
        aligned.targets == ALL_LINEAR or not set(aligned.targets) <= set(adapter.targets)
    ):
        found.append(
            f"`{method}` changes the layers that alignment changed, but fine-tuning does not adapt all of them: "
            f"{_listed(aligned)} in the alignment, {_listed(adapter)} in the fine-tuning; expected all of the former. "
            "Set `finetune.fresh.targets`"
        )
    return found


def _listed(adapter: Lora) -> str:
    return adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)


def _setting(assignment: str, slot: str) -> str:
    alternative = "" if slot == "align" else f", or `finetune.fresh.{assignment}` if `finetune.fresh` is set"
    return f"Set `align.adapter.{assignment}`{alternative}"
