"""Routed feed-forward blocks: several low-rank experts on one shared block, mixed for each token by a router.

In each layer, with the shared matrices ``G`` (gate), ``U`` (up) and ``D`` (down), expert ``e`` is the block with the
matrices ``G + s B_e A_e`` and so on, ``s = alpha / rank``; the router is a matrix ``R`` of shape ``[experts, hidden]``:

    g = softmax(R x), of which the ``top_k`` largest are kept and divided by their sum
    y = sum_e g_e FFN_e(x),  FFN_e(x) = D_e (act(G_e x) * (U_e x))

(H3Fusion, arXiv 2411.17792, equations of its section on the mixture.) The shared products ``G x`` and ``U x`` are
computed once, and ``D`` once on the mixture, so an expert costs its low-rank products and its activations only.

The shared matrices keep their names, so an adapter can be attached to or merged into them like in any other model; what
it changes is what all experts share. Factors and router are float32 whatever the dtype of the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import linear

from harness.errors import ModelError
from harness.models import adapter
from harness.models.adapter import FEED_FORWARD

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FOLDER = "routed"
"""The folder of routed experts inside an artifact."""
WEIGHTS = "routed.safetensors"
SETTINGS = "routed.json"
ROUTER_SCALE = 0.02
"""Standard deviation of a new router's entries, as in the authors' code."""
_WRAPPED = "base_model.model."


class Shape(NamedTuple):
    """What the tensors of routed experts do not say.

    Attributes:
        top_k: experts that a token is given to.
        scale: factor of the product of an expert's factors.
    """

    top_k: int
    scale: float


class RoutedBlock(Module):
    """A feed-forward block whose place in a layer is taken by experts on its matrices.

    Attributes:
        router: the router.
        shape: see ``Shape``.

    Args:
        block: the block with the shared matrices.
        tensors: ``router``, ``[experts, hidden]``, and for each matrix ``NAME.a``, ``[experts, rank, in]``, and
            ``NAME.b``, ``[experts, out, rank]``.
        shape: see ``Shape``.
    """

    def __init__(self, block: Module, tensors: Mapping[str, Tensor], shape: Shape) -> None:
        """Take the matrices of the block, and store frozen copies of the tensors."""
        super().__init__()
        # Not a submodule: the names of its matrices would appear twice.
        self.__dict__["block"] = block
        self.shape = shape
        self.act_fn: Any = block.act_fn
        parts: dict[str, Any] = {name: getattr(block, name) for name in FEED_FORWARD}
        self.gate_proj, self.up_proj, self.down_proj = (parts[name] for name in FEED_FORWARD)
        experts, hidden = tensors["router"].shape
        self.router = Linear(hidden, experts, bias=False)
        self.router.weight = Parameter(tensors["router"], requires_grad=False)
        for name in FEED_FORWARD:
            setattr(self, f"{name}_a", Parameter(tensors[f"{name}.a"], requires_grad=False))
            setattr(self, f"{name}_b", Parameter(tensors[f"{name}.b"], requires_grad=False))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mixture of the experts' outputs, ``[..., hidden]``."""
        weights = top(self.router(hidden.float()), self.shape.top_k).to(hidden.dtype)
        gate = self.gate_proj(hidden).unsqueeze(-2) + self._of_all("gate_proj", hidden)
        up = self.up_proj(hidden).unsqueeze(-2) + self._of_all("up_proj", hidden)
        inner = self.act_fn(gate) * up * weights.unsqueeze(-1)
        b, a = self.factors()["down_proj"]
        low = torch.einsum("...ei,eri->...er", inner.float(), a)
        own = torch.einsum("...er,eor->...o", low, b) * self.shape.scale
        mixed: Tensor = self.down_proj(inner.sum(dim=-2)) + own.to(hidden.dtype)
        return mixed

    def factors(self) -> dict[str, tuple[Parameter, Parameter]]:
        """Return the factors ``B`` and ``A`` of all experts by matrix; see ``tensors`` of the class."""
        return {name: (getattr(self, f"{name}_b"), getattr(self, f"{name}_a")) for name in FEED_FORWARD}

    def own(self) -> dict[str, Parameter]:
        """Return what belongs to router and experts; see ``tensors`` of the class."""
        parts = {f"{name}.{part}": getattr(self, f"{name}_{part}") for name in FEED_FORWARD for part in ("a", "b")}
        return {"router": self.router.weight, **parts}

    def _of_all(self, name: str, hidden: Tensor) -> Tensor:
        """Return the low-rank products of all experts with one input ``[..., in]``, ``[..., experts, out]``."""
        b, a = self.factors()[name]
        flat = linear(hidden.float(), a.flatten(0, 1))
        low = flat.view(*flat.shape[:-1], *a.shape[:2])
        return (torch.einsum("...er,eor->...eo", low, b) * self.shape.scale).to(hidden.dtype)


def top(logits: Tensor, count: int) -> Tensor:
    """Return the ``count`` largest of a softmax over experts, divided by their sum; the others are zero.

    Args:
        logits: ``[..., experts]``.
        count: how many are kept.
    """
    shares = logits.softmax(dim=-1)
    kept, which = shares.topk(count, dim=-1)
    return torch.zeros_like(shares).scatter(-1, which, kept / kept.sum(dim=-1, keepdim=True))


def start(folders: Sequence[Path], *, top_k: int, seed: int, out: Path) -> None:
    """Write routed experts: the changes by stored adapters, and a new router.

    Args:
        folders: adapters on the matrices of the feed-forward blocks, one for each expert, of one rank and scale.
        top_k: experts that a token is given to.
        seed: of the router's entries.
        out: the folder to write.

    Raises:
        ModelError: an adapter is not readable, has other layers, another rank or another scale, or is not plain LoRA.
    """
    read = [adapter.read(folder) for folder in folders]
    first = read[0][0]
    blocks = sorted({adapter.layer_of(name).rpartition(".")[0] for name in read[0][1]})
    expected = {
        f"{block}.{name}.lora_{part}.default.weight" for block in blocks for name in FEED_FORWARD for part in "AB"
    }
    for folder, (lora, factors) in zip(folders, read, strict=True):
        if factors.keys() != expected or (lora.rank, lora.scale) != (first.rank, first.scale):
            raise ModelError(
                f"the adapter in {folder} cannot be an expert of a routed feed-forward block; expected plain LoRA of "
                f"one rank and scale on the matrices {', '.join(FEED_FORWARD)}. Set `align.adapter.targets`"
            )
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in blocks:
        place = block.removeprefix(_WRAPPED)
        for name in FEED_FORWARD:
            for part, letter in (("a", "A"), ("b", "B")):
                own = [factors[f"{block}.{name}.lora_{letter}.default.weight"] for _, factors in read]
                tensors[f"{place}.{name}.{part}"] = torch.stack(own)
        hidden = tensors[f"{place}.gate_proj.a"].shape[-1]
        tensors[f"{place}.router"] = torch.randn(len(folders), hidden, generator=rng) * ROUTER_SCALE
    _write(tensors, Shape(top_k, first.scale), out)


def install(model: PreTrainedModel, folder: Path) -> None:
    """Put stored experts in the place of a model's feed-forward blocks, frozen, in place.

    Raises:
        ModelError: the folder contains no readable experts, or they do not fit the model.
    """
    try:
        shape = Shape(**json.loads((folder / SETTINGS).read_text()))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} contains no readable experts ({type(error).__name__}: {error}); expected `{WEIGHTS}` and "
            f"`{SETTINGS}`. Remove the folder so that the stage that writes it runs again."
        ) from error
    places = [name.removesuffix(".router") for name in tensors if name.endswith(".router")]
    blocks = {place: _block(model, place, tensors, folder) for place in places}
    for place, block in blocks.items():
        own = {name.removeprefix(f"{place}."): value for name, value in tensors.items() if name.startswith(f"{place}.")}
        routed = RoutedBlock(block, {name: value.to(model.device) for name, value in own.items()}, shape)
        model.set_submodule(place, routed.train(model.training))


def remove(model: PreTrainedModel) -> None:
    """Put the feed-forward blocks back that ``install`` replaced; adapters on them have to be detached before."""
    for name, module in list(model.named_modules()):
        if isinstance(module, RoutedBlock):
            model.set_submodule(name, module.__dict__["block"])


def blocks_of(model: Module) -> dict[str, RoutedBlock]:
    """Return a model's routed blocks, in order, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RoutedBlock)}


def save(model: PeftModel, out: Path) -> None:
    """Write a model's routed experts to a folder."""
    found = blocks_of(model.get_base_model())
    tensors = {
        f"{place}.{name}": value.detach().float().cpu()
        for place, block in found.items()
        for name, value in block.own().items()
    }
    _write(tensors, next(iter(found.values())).shape, out)


def _block(model: PreTrainedModel, place: str, tensors: Mapping[str, Tensor], folder: Path) -> Any:
    try:
        block: Any = model.get_submodule(place)
        shapes = {name: getattr(block, name).weight.shape for name in FEED_FORWARD}
        fits = callable(block.act_fn) and all(
            (tensors[f"{place}.{name}.b"].shape[1], tensors[f"{place}.{name}.a"].shape[2]) == tuple(shape)
            for name, shape in shapes.items()
        )
    except AttributeError:
        fits = False
    if not fits:
        raise ModelError(
            f"the experts in {folder} do not fit the model: `{place}` is no feed-forward block with "
            f"{', '.join(FEED_FORWARD)} of their shapes; expected experts of the same base model. Check `model`"
        )
    return block


def _write(tensors: Mapping[str, Tensor], shape: Shape, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    (out / WEIGHTS).write_bytes(to_bytes(contiguous, metadata={"format": "pt"}))
    (out / SETTINGS).write_text(json.dumps(shape._asdict(), indent=2, sort_keys=True) + "\n")
