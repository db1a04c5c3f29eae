"""Trained weights: which of a model's own weights a stage trains, instead of an adapter.

While training, all weights of the model are float32: an update of ordinary size is below half a unit in the last place
of a bfloat16 weight and would be lost. Afterwards they are stored in the number format of the base, see
``harness.models.stored_weights``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self, final

from harness.errors import ConfigError, ModelError, Problem

if TYPE_CHECKING:
    from torch.nn import Module

    from harness.models.adapter import Lora

ALL: Literal["all"] = "all"
NONE: Literal["none"] = "none"
_TEXTS = "`full` (all weights), `full:NAME+NAME` (those of named modules) or `none` (nothing is trained)"


@final
@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """The weights that a stage trains; written in a configuration as a text, see ``parse``.

    Attributes:
        modules: ``all`` trains every weight, ``none`` nothing. Otherwise the names of modules, each a component of
            module paths, such as ``q_proj``, ``mlp`` or ``embed_tokens``: the weights in them and in all below are
            trained. A head that is tied to the input embeddings is trained with them.
    """

    name: ClassVar[str] = "weights"
    version: ClassVar[int] = 1

    modules: tuple[str, ...] | Literal["all", "none"] = ALL

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the selection that a text describes.

        Raises:
            ConfigError: the text is none of ``full``, ``full:NAME+NAME`` and ``none``.
        """
        kind, colon, names = text.partition(":")
        if text in ("full", NONE):
            return cls(modules=ALL if text == "full" else NONE)
        if kind == "full" and colon:
            named = cls(modules=tuple(names.split("+")))
            if problems := named.problems():
                raise ConfigError([Problem("", problem.text) for problem in problems])
            return named
        raise ConfigError([Problem("", f"{text!r} is not known; expected {_TEXTS}, or the settings of an adapter")])

    @property
    def nothing(self) -> bool:
        """Whether nothing is trained."""
        return self.modules == NONE

    def ordered(self) -> TrainedWeights:
        """Return the same selection with its modules in alphabetical order, each once."""
        return self if isinstance(self.modules, str) else replace(self, modules=tuple(sorted(set(self.modules))))

    def problems(self) -> list[Problem]:
        """Return the errors of the names of modules."""
        if isinstance(self.modules, str):
            return []
        wrong = not self.modules or any(not name or "." in name or name in (ALL, NONE) for name in self.modules)
        text = f"{list(self.modules)} are not names of modules; expected some as in `full:q_proj+mlp`, without dots"
        return [Problem("modules", text)] if wrong else []


def targets_of(trained: Lora | TrainedWeights) -> Sequence[str]:
    """Return the names of the layers that an adapter adapts, or ``all-linear``; nothing without an adapter."""
    return () if isinstance(trained, TrainedWeights) else trained.targets


def unfreeze(model: Module, trained: TrainedWeights) -> None:
    """Make a frozen model trainable, in place: cast it to float32, and let the selected weights require gradients.

    Raises:
        ModelError: a named module does not occur in the model, or has no weights.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    if not isinstance(trained.modules, str):
        known = {part for name, _ in named for part in name.split(".")[:-1]}
        if missing := [name for name in trained.modules if name not in known]:
            raise ModelError(
                f"the model has no module with weights named {', '.join(f'`{name}`' for name in missing)}; expected "
                f"some of {', '.join(f'`{name}`' for name in sorted(known) if not name.isdigit())}. "
                "Set them in `align.adapter` or `finetune.fresh`"
            )
    for parameter in model.parameters():
        # In place, so that tied weights stay tied.
        parameter.data = parameter.data.float()
    for name, parameter in named:
        chosen = trained.modules == ALL or not set(trained.modules).isdisjoint(name.split(".")[:-1])
        if chosen and not trained.nothing:
            parameter.requires_grad_(True)
