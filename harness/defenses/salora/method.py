"""SaLoRA: fine-tuning whose change of a layer cannot reach the outputs that safe answers use.

Mingjie Li, Wai Man Si, Michael Backes, Yang Zhang, Yisen Wang: "SaLoRA: Safety-Alignment Preserved Low-Rank
Adaptation", ICLR 2025 (arXiv 2501.01765).

An adapted layer ``W`` becomes ``W + s C (B A - B_0 A_0)``, with s the scale of the adapter and, of the aligned model:

- ``C = I - V_s V_s^T``, with ``V_s`` the first ``safe_rank`` right singular vectors of the layer's outputs at the
  answers of ``safety_rows`` refusals, one row per token: the change has no component along them;
- ``s B_0 A_0 = V_t V_t^T (U S V^T)``, with ``U S V^T`` the main part of ``W``, of the adapter's rank, and ``V_t`` the
  first ``task_rank`` right singular vectors of the outputs at the answers of ``task_rows`` of the user's examples.
  ``A_0 = sqrt(S / s) V^T`` and ``B_0`` are where the factors start, so that the first step has the aligned model.

The authors subtract ``C B_0 A_0`` from ``W`` once. Here nothing but the adapter is stored, so the same layer is
computed with a second, frozen product, and at the end the adapter holds the whole change, of twice its rank. The
projection is a part of every forward pass, because projecting a gradient would not project AdamW's step. Weight decay
pulls ``B A`` towards zero, not towards ``B_0 A_0``: the published runs have none.

A forward and backward pass per step, with the two small products more in each layer; before the first step a forward
pass on the refusals and the user's examples, an eigendecomposition of the size of the outputs per layer, and a
decomposition of its matrix.

Deviations from the authors' code: the adapter has the scale and targets of the configuration (theirs: s = 1; query and
value projections); tokens are supervised as in plain training (theirs: whole texts, packed into blocks of 128); the
eigenvectors are exact (theirs: a randomized decomposition, which is used for ``W`` here too). It requires an adapter of
the user's own (``finetune.adapter: double``).

Fidelity: hand-computed only. Equations and defaults are those of the authors' code (homles11/SaLoRA 3f73de1,
lora_train_act.py); projection, start and forward pass are computed by hand in the tests, no vectors of the authors'
trainer were available.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

from harness.corpora.examples import Role
from harness.engine.checks import counts
from harness.errors import ModelError, Problem
from harness.protocols import DataRequirement, Product

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from harness.protocols import Batch, BatchProvider, Gradient, Learner, Metrics


@final
@dataclass(frozen=True, kw_only=True)
class SaLoRA:
    """Settings of SaLoRA.

    Attributes:
        safe_rank: number of directions of a layer's outputs that the change cannot reach.
        task_rank: number of directions in which the adapter starts.
        safety_rows: number of refusals that determine the former.
        task_rows: number of the user's examples that determine the latter.
        batch_size: of these examples at once, of which both numbers are multiples.
    """

    name: ClassVar[str] = "salora"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    needs_fresh_adapter: ClassVar[bool] = True
    base_weights: ClassVar[str] = "starts the adapter at their main directions"

    safe_rank: int = 32
    task_rank: int = 32
    safety_rows: int = 128
    task_rows: int = 128
    batch_size: int = 16

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Refusals, and the user's own examples."""
        return (
            DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=self.batch_size),
            DataRequirement(role=Role.TASK, rows=self.task_rows, batch_size=self.batch_size, own=True),
        )

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = counts(self, "safe_rank", "task_rank", "safety_rows", "task_rows", "batch_size")
        if found:
            return found
        return [
            Problem(name, f"{rows} is not a multiple of `batch_size` {self.batch_size}; expected one")
            for name, rows in (("safety_rows", self.safety_rows), ("task_rows", self.task_rows))
            if rows % self.batch_size
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> SaLoRAStep:  # noqa: ARG002
        """Start a run: find the subspaces.

        Raises:
            ModelError: what is trained is not plain LoRA, or a layer has too few outputs for ``safe_rank``.
        """
        return SaLoRAStep(self, learner, batches)


class Constrained(NamedTuple):
    """An adapted layer.

    Attributes:
        name: of the layer.
        a: the trainable factor ``A``, ``[rank, in]``.
        b: the trainable factor ``B``, ``[out, rank]``.
        place_a: the index of ``a`` among the trainable parameters.
        place_b: that of ``b``.
        scale: s.
    """

    name: str
    a: Parameter
    b: Parameter
    place_a: int
    place_b: int
    scale: float


@final
class SaLoRAStep:
    """One run of SaLoRA; its state are the subspaces and the start."""

    def __init__(self, settings: SaLoRA, learner: Learner, batches: BatchProvider) -> None:
        """Find the subspaces, from the examples.

        Raises:
            ModelError: what is trained is not plain LoRA, or a layer has too few outputs for ``safe_rank``.
        """
        self._learner = learner
        self._layers = _layers(learner)
        small = [layer.name for layer in self._layers if len(layer.b) <= settings.safe_rank]
        if small:
            raise ModelError(
                f"`salora` keeps {settings.safe_rank} directions of every layer's outputs, but `{small[0]}` has "
                "no more of them; expected fewer. Lower `safe_rank`"
            )
        self._safe, self._start = self._subspaces(settings, batches)

    def _subspaces(self, settings: SaLoRA, batches: BatchProvider) -> tuple[list[Tensor], Gradient]:
        """Return ``V_s`` of each layer, and the initial values of the trainable parameters."""
        from harness.defenses.salora.subspaces import OutputSums, directions, main_part

        modules: dict[str, Any] = {layer.name: self._learner.module.get_submodule(layer.name) for layer in self._layers}
        bases: dict[str, Module] = {name: module.get_base_layer() for name, module in modules.items()}
        sums = OutputSums(self._learner, bases)
        size = settings.batch_size
        # The sums of a set are [out, out] in float64 for every layer: one set at a time.
        safe = {
            name: directions(found, settings.safe_rank)
            for name, found in sums.of(
                [batches.next(Role.REFUSAL) for _ in range(settings.safety_rows // size)]
            ).items()
        }
        task = sums.of([batches.next(Role.TASK) for _ in range(settings.task_rows // size)])
        start = [weight.detach().clone() for weight in self._learner.trainables]
        for layer in self._layers:
            weight: Any = bases[layer.name].weight
            main = main_part(_full(weight), len(layer.a))
            root = (main.values / layer.scale).sqrt()
            along = directions(task[layer.name], settings.task_rank)
            left = (main.left * root).to(along.device)
            start[layer.place_a] = (main.right * root).T.to(along.device)
            start[layer.place_b] = along @ (along.T @ left)
        return [safe[layer.name] for layer in self._layers], start

    def initial(self) -> Gradient:
        """Return ``A_0`` and ``B_0``."""
        return self._start

    def backward(self, batch: Batch) -> Metrics:
        """Write the gradient of the loss under the projection."""
        with self._projected():
            loss, gradient = self._learner.gradient(batch)
        self._learner.set_gradient(gradient)
        return {"loss": loss}

    @contextmanager
    def _projected(self) -> Iterator[None]:
        """Within the context, adapters add ``s C (B A - B_0 A_0) x`` to the output of their layer."""
        with ExitStack() as stack:
            for layer, safe in zip(self._layers, self._safe, strict=True):
                module: Any = self._learner.module.get_submodule(layer.name)
                hooks = _hooks(self._start[layer.place_a], self._start[layer.place_b], safe)
                parts = (module.lora_A["default"], module.lora_B["default"])
                for part, hook in zip(parts, hooks, strict=True):
                    stack.callback(part.register_forward_hook(hook).remove)
            yield

    def finish(self) -> Mapping[str, object]:
        """Make the adapter hold the whole change; return its rank and how much of ``B A - B_0 A_0`` the change is."""
        import torch

        from harness.mechanisms.weight_change import norm, put

        products, kept, whole = {}, 0.0, 0.0
        for layer, safe in zip(self._layers, self._safe, strict=True):
            first_a, first_b = self._start[layer.place_a], self._start[layer.place_b]
            b = layer.scale * torch.cat([layer.b.detach(), -first_b], dim=1)
            free = Product(b, torch.cat([layer.a.detach(), first_a]))
            products[layer.name] = Product(b - safe @ (safe.T @ b), free.a)
            kept, whole = kept + norm(products[layer.name]) ** 2, whole + norm(free) ** 2
        put(self._learner, products)
        rank = max(min(len(part.a), *part.b.shape[:1], part.a.shape[1]) for part in products.values())
        return {"rank": rank, "unconstrained_share": kept / whole if whole else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Return the subspaces and the start."""
        return {"safe": self._safe, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        device = self._learner.trainables[0].device
        self._safe = [part.to(device) for part in state["safe"]]
        self._start = [part.to(device) for part in state["start"]]


def _hooks(first_a: Tensor, first_b: Tensor, safe: Tensor) -> tuple[Any, Any]:
    """Return forward hooks of the two factors of an adapter, of which the second replaces its output."""
    from torch.nn.functional import linear

    given: list[Tensor] = []

    def on_a(_module: Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        given[:] = [inputs[0]]

    def on_b(_module: Module, _inputs: Any, output: Tensor) -> Tensor:
        change = output - linear(linear(given.pop(), first_a), first_b)
        return change - linear(linear(change, safe.T), safe)

    return on_a, on_b


def _layers(learner: Learner) -> list[Constrained]:
    from harness.models.adapter import layer_of, scale_of, trained_pairs

    places = {id(weight): place for place, weight in enumerate(learner.trainables)}
    found = []
    for name_a, name_b in trained_pairs(learner.module):
        a, b = learner.module.get_parameter(name_a), learner.module.get_parameter(name_b)
        name = layer_of(name_a)
        found.append(Constrained(name, a, b, places[id(a)], places[id(b)], scale_of(learner.module, name)))
    return found


def _full(weight: Any) -> Tensor:
    """Return a matrix that may be sharded over the processes as a whole."""
    whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return whole
