"""Ablation: the refusal direction is projected out of the aligned model's weights; nothing is trained.

Arditi et al., 2024, "Refusal in Language Models Is Mediated by a Single Direction" (arXiv:2406.11717). With ``h(x)``
the residual stream behind layer ``l`` at the last token of a prompt, the direction is the difference of means

    r = mean over harmful prompts of h(x) - mean over harmless prompts of h(x),    r' = r / ||r||,

and every matrix ``W`` that writes into the residual stream becomes ``W - r' r'^T W``, so that no layer can write along
``r'``. The change of a matrix has rank 1: it is stored as an adapter with ``B = -r'`` and ``A = r'^T W``.

Deviations: the authors try every layer and token position and keep the direction that bypasses refusal best on a
validation set; here the layer is a setting and the position the prompt's last token. They orthogonalize the embedding
too; here it stays, since many models share it with the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Example
from harness.engine.checks import counts
from harness.errors import DataError, ModelError, Problem
from harness.protocols import AttackPlan, Product, Victim

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@final
@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Projects the refusal direction out of the writing matrices.

    Attributes:
        layer: depth of the layer behind which the direction is read, as a share of all layers.
        prompts: prompts of each kind.
        targets: names of the linear layers that write into the residual stream.
    """

    name: ClassVar[str] = "ablation"
    version: ClassVar[int] = 1
    layer: float = 0.6
    prompts: int = 100
    targets: tuple[str, ...] = ("o_proj", "down_proj")

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        problems = counts(self, "prompts")
        if not 0 < self.layer <= 1:
            problems.append(Problem("layer", f"{self.layer} is out of range; expected a share > 0 and <= 1, as 0.6"))
        if not self.targets:
            problems.append(
                Problem("targets", "is empty; expected names of linear layers, such as [o_proj, down_proj]")
            )
        return problems

    def preflight(self, plan: AttackPlan) -> list[Problem]:
        """Check that the pool has the prompts."""
        if plan.pool_rows >= self.prompts:
            return []
        reason = (
            f"{self.prompts} harmful prompts requested, but the attacker has {plan.pool_rows}; lower it, or raise "
            "`corpus.attack.rows`"
        )
        return [Problem("prompts", reason)]

    def tamper(
        self, victim: Victim, harmful: Sequence[Example], harmless: Sequence[Example], *, device: str
    ) -> Mapping[str, Product]:
        """Return what is added to each writing matrix, by module name."""
        for kind, rows in (("harmful", harmful), ("harmless", harmless)):
            if len(rows) < self.prompts:
                raise DataError(
                    f"`tamper.prompts`: {self.prompts} {kind} prompts requested, but there are {len(rows)}; lower it"
                )
        read = [_states(victim, rows[: self.prompts], self.layer, device) for rows in (harmful, harmless)]
        direction = difference_of_means(*read)
        found = {
            name: projection(module.weight, direction)
            for name, module in victim.model.named_modules()
            if name.rpartition(".")[2] in self.targets
        }
        if not found:
            raise ModelError(
                f"the model has no layer named {' or '.join(self.targets)}; expected the names of its linear layers "
                "that write into the residual stream. Set `tamper.targets`"
            )
        return found


def difference_of_means(harmful: Tensor, harmless: Tensor) -> Tensor:
    """Return the normalized difference of the means of two sets of states, ``[rows, width]`` each.

    Raises:
        ModelError: the means are equal.
    """
    difference = harmful.mean(0) - harmless.mean(0)
    norm = difference.norm()
    if not float(norm):
        raise ModelError("the model's states of harmful and of harmless prompts do not differ; expected a difference")
    unit: Tensor = difference / norm
    return unit


def projection(weight: Tensor, direction: Tensor) -> Product:
    """Return the factors of ``-r r^T W``.

    Args:
        weight: ``W``, ``[out, in]``.
        direction: ``r``, ``[out]``, of length 1.
    """
    out = direction.to(weight.device)
    return Product(-out[:, None], (out @ weight.detach().float())[None, :])


def _states(victim: Victim, rows: Sequence[Example], depth: float, device: str) -> Tensor:
    """Return the residual stream at the last token of each prompt, float32 ``[rows, width]``."""
    import torch

    from harness.corpora.encode import prompts_of
    from harness.models.decoder import kept_outputs, layers

    stack: list[Module] = layers(victim.model)
    index = max(round(depth * len(stack)), 1) - 1
    found = []
    with torch.no_grad(), kept_outputs({index: stack[index]}) as kept:
        for prompt in prompts_of(victim.tokenizer, [victim.encoding.question(row) for row in rows]):
            victim.model(input_ids=torch.tensor([prompt.ids], device=device), use_cache=False)
            found.append(kept[index][0, -1].float())
    return torch.stack(found)
