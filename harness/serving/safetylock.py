"""SafetyLock: the attention heads that tell safe from unsafe answers best are shifted towards the safe ones.

Zhu et al., "Locking Down the Finetuned LLMs Safety", 2024 (arXiv 2410.10343); the shift is that of inference-time
intervention (Li et al., NeurIPS 2023, arXiv 2306.03341). With ``x_h`` the output of head ``h`` in front of the
attention's output projection, at the last ``tokens`` tokens of answers to the same harmful prompts, refusals (safe) and
harmful ones (unsafe):

    u_h = d / ||d||,  d = mean of x_h over safe tokens - mean of x_h over unsafe tokens
    s_h = standard deviation of x_h . u_h over all of them

A logistic regression per head is fitted to a part of the tokens; a head's accuracy is the mean of that on this part and
that on the rest. In the ``heads`` heads with the highest accuracy, ``x_h`` becomes ``x_h + strength s_h u_h`` at every
token, in the prompt and in the answer. This is the bias ``W_o (strength s_h u_h)`` that the authors write into the
output projection.

Directions are read from the aligned model, once for all fine-tunings of it; the shift acts in the fine-tuned one. The
calibration takes one forward pass per answer, generating none. Trap: tokens are split and not answers, so the "rest"
has tokens of answers that were fitted, and the accuracies are optimistic.

Deviations from the authors' code (commit 8da6613): an answer's tokens end before its end token, where theirs cut five
tokens off the chat template; the split is seeded; activations are float32 and not rounded to float16; of heads of equal
accuracy the later one is taken, where their order is that of an unstable sort.

Fidelity: hand-computed only. Direction, deviation, accuracy and shift are those of the authors' code, as are the
defaults; they are computed by hand in the tests, no vectors of their implementation were available.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.corpora.examples import Example, Role
from harness.engine.checks import counts
from harness.errors import DataError, ModelError, Problem
from harness.protocols import Calibrated, DataRequirement, ServedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module


@final
@dataclass(frozen=True, kw_only=True)
class HeadDirections:
    """Direction, deviation and accuracy of every attention head of the aligned model.

    Attributes:
        pairs: number of harmful prompts with both answers.
        tokens: tokens per answer, counted from its end.
        held_out: share of the tokens to which no classifier is fitted.
    """

    name: ClassVar[str] = "head_directions"
    version: ClassVar[int] = 1
    on_aligned: ClassVar[bool] = True
    pairs: int = 100
    tokens: int = 5
    held_out: float = 0.4

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Harmful prompts with both answers."""
        return (DataRequirement(role=Role.HARMFUL, rows=self.pairs, batch_size=None, paired=True),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "pairs", "tokens")
        if not 0 < self.held_out < 1:
            found.append(Problem("held_out", f"{self.held_out} is out of range; expected a share > 0 and < 1, as 0.4"))
        return found

    def preflight(self) -> list[Problem]:
        """Return no problems: it reads the model and the corpus."""
        return []

    def calibrate(
        self,
        served: ServedModel,
        examples: Mapping[Role, Sequence[Example]],
        refusals: Mapping[Role, Sequence[Example]],
        *,
        seed: int,
        facts: dict[str, Any],
    ) -> Calibrated:
        """Read the heads' outputs and compare those of safe with those of unsafe answers."""
        import torch

        unsafe, safe = (
            torch.stack([state for row in rows for state in head_outputs(served, row, self.tokens)], dim=1)
            for rows in (examples[Role.HARMFUL], refusals[Role.HARMFUL])
        )
        direction, deviation = directions(safe, unsafe)
        accuracy = accuracies(safe, unsafe, held_out=self.held_out, seed=seed)
        facts["forward_passes"] = 2 * self.pairs
        facts["heads"] = accuracy.numel()
        facts["accuracy"] = {"mean": float(accuracy.mean()), "best": float(accuracy.max())}
        return Calibrated({"direction": direction, "deviation": deviation, "accuracy": accuracy}, {}, seed)


@final
@dataclass(frozen=True, kw_only=True)
class SafetyLock:
    """Shifts some attention heads while the model answers.

    Attributes:
        heads: number of heads.
        strength: length of the shift in standard deviations; below 0 it undoes safety.
        calibration: how directions and heads are found.
    """

    name: ClassVar[str] = "safetylock"
    version: ClassVar[int] = 1
    heads: int = 24
    strength: float = 6.0
    calibration: HeadDirections = field(default_factory=HeadDirections)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "heads")

    def steering(self, served: ServedModel, calibrated: Calibrated) -> AbstractContextManager[None]:
        """Return the context within which the heads are shifted.

        Raises:
            ModelError: the model has fewer heads.
        """
        found = calibrated.tensors
        total = found["accuracy"].numel()
        if self.heads > total:
            raise ModelError(
                f"`serve.heads`: {self.heads} heads requested, but the model has {total}; expected at most as many"
            )
        return _shifted(served, shift(found, heads=self.heads, strength=self.strength))


def directions(safe: Tensor, unsafe: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit direction of every head, ``[layers, heads, size]``, and the deviation along it.

    Args:
        safe: outputs of the heads at tokens of safe answers, ``[layers, tokens, heads, size]``.
        unsafe: the same of unsafe answers.
    """
    import torch

    difference = safe.mean(1) - unsafe.mean(1)
    # A head that is always zero has no direction, and is not shifted.
    unit = torch.nan_to_num(difference / difference.norm(dim=-1, keepdim=True))
    along = torch.einsum("lthd,lhd->lth", torch.cat([safe, unsafe], dim=1), unit)
    return unit, along.std(dim=1, correction=0)


def accuracies(safe: Tensor, unsafe: Tensor, *, held_out: float, seed: int) -> Tensor:
    """Return how well a logistic regression separates the two kinds of answers in every head, ``[layers, heads]``.

    Args:
        safe: as for ``directions``.
        unsafe: as for ``directions``.
        held_out: share of the tokens to which it is not fitted.
        seed: of the choice of these tokens.

    Returns:
        The mean of the accuracies on both parts, 0 to 1.

    Raises:
        DataError: one of the parts has no tokens.
    """
    import numpy as np
    import torch

    features = torch.cat([safe, unsafe], dim=1).double().cpu().numpy()
    labels = np.repeat([1.0, -1.0], [safe.shape[1], unsafe.shape[1]])
    order = np.random.default_rng(seed).permutation(len(labels))
    fitted, rest = np.split(order, [int(len(labels) * (1 - held_out))])
    if not len(fitted) or not len(rest):
        raise DataError(
            f"`serve.calibration.pairs`: {len(labels)} tokens cannot be split into two parts; expected more pairs"
        )

    def accuracy(values: NDArray[np.float64]) -> float:
        weights = logistic_regression(values[fitted], labels[fitted])
        right = (values @ weights[:-1] + weights[-1] > 0) == (labels > 0)
        return float(right[fitted].mean() + right[rest].mean()) / 2

    layers, _, heads, _ = features.shape
    found = [[accuracy(features[layer, :, head]) for head in range(heads)] for layer in range(layers)]
    return torch.tensor(found)


def shift(found: Mapping[str, Tensor], *, heads: int, strength: float) -> Tensor:
    """Return what is added to the heads' outputs, ``[layers, heads, size]``; zero in all but the most accurate ones."""
    import torch

    accuracy = found["accuracy"]
    # The later of two equals first.
    chosen = accuracy.flatten().flip(0).argsort(descending=True, stable=True)[:heads]
    mask = torch.zeros(accuracy.numel(), dtype=torch.bool)
    mask[accuracy.numel() - 1 - chosen] = True
    length = (strength * found["deviation"] * mask.view_as(accuracy))[..., None]
    return length * found["direction"]


def logistic_regression(features: NDArray[np.float64], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights and bias that minimize ``||w||^2 / 2 + sum log(1 + exp(-y (w x + b)))``, ``[size + 1]``."""
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = labels * (features @ weights[:-1] + weights[-1])
        pull = -labels * expit(-margins)
        value = weights[:-1] @ weights[:-1] / 2 + np.logaddexp(0, -margins).sum()
        return float(value), np.append(weights[:-1] + pull @ features, pull.sum())

    start = np.zeros(features.shape[1] + 1)
    solution: NDArray[np.float64] = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return solution


def head_outputs(served: ServedModel, row: Example, tokens: int) -> list[Tensor]:
    """Return the heads' outputs at the last tokens of an answer, each ``[layers, heads, size]``, float32.

    Raises:
        DataError: no room is left for the answer.
    """
    import torch

    from harness.models.decoder import kept_input, output_projections

    (encoded,) = served.encoding.encode_each(served.tokenizer, [row])
    if encoded is None:
        raise DataError(
            "`serve.calibration`: a prompt leaves no room for its answer; raise `model.encoding.max_length`"
        )
    ids = encoded.input_ids
    if ids[-1] == served.encoding.end(served.tokenizer):
        ids = ids[:-1]
    with torch.no_grad(), ExitStack() as stack:
        kept = [stack.enter_context(kept_input(projection)) for projection in output_projections(served.model)]
        served.model(input_ids=torch.tensor([ids], device=served.model.device), use_cache=False)
    heads = served.model.config.num_attention_heads
    last = torch.stack([states[0][0, -tokens:].float().cpu() for states in kept])
    return list(last.view(*last.shape[:2], heads, -1).unbind(1))


@contextmanager
def _shifted(served: ServedModel, shift: Tensor) -> Iterator[None]:
    """Within the context, add ``shift``, ``[layers, heads, size]``, to the inputs of the output projections."""
    from harness.models.decoder import output_projections

    model = served.model

    def hook_of(added: Tensor) -> Any:
        def hook(_module: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0] + added, *inputs[1:])

        return hook

    with ExitStack() as stack:
        for projection, added in zip(output_projections(model), shift.flatten(1), strict=True):
            if bool(added.any()):
                moved = added.to(device=model.device, dtype=model.dtype)
                stack.callback(projection.register_forward_pre_hook(hook_of(moved)).remove)
        yield
