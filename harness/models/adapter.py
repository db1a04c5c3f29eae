"""LoRA adapters: initialize, attach, save, load and detach.

LoRA (Hu et al., 2021, arXiv:2106.09685): a linear layer ``y = W x`` becomes ``y = W x + s B A x`` with ``A`` of shape
``[rank, in]``, initialized uniformly (Kaiming, ``a = sqrt(5)``), ``B`` of shape ``[out, rank]``, initialized to zero,
and ``s = alpha / rank``. rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732, equation 5): ``s = alpha / sqrt(rank)``.

DoRA (Liu et al., 2024, arXiv:2402.09353, equation 5): the matrix is ``m * V / ||V||`` with ``V = W + s B A``, the norm
taken of each row, ``[out]``, and a trainable magnitude ``m`` of the same shape, initialized to the norms of ``W``. The
gradient treats ``||V||`` as a constant (section 4.3). The magnitudes are trainable parameters like the factors: weight
decay pulls them towards zero too, as in peft, and a perturbation over all trainable parameters includes them.

Factors are float32 whatever the dtype of the base: methods that perturb weights by 1e-5 per entry need the resolution.
Files follow the conventions of ``peft``, so that ``PeftModel.from_pretrained(base, folder)`` reads a stored adapter.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.engine.checks import below_one, counts, positive
from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
ALL_LINEAR = "all-linear"
_SLOT = ".default."
_MAGNITUDE = ".lora_magnitude_vector"
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
"""The matrices of a feed-forward block with a gate, which is what most decoders have."""
_USUAL_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", *FEED_FORWARD)


@final
@dataclass(frozen=True, kw_only=True)
class Lora:
    """Hyperparameters of an adapter. The defaults are those of Booster, Panacea and Virus.

    Attributes:
        rank: inner dimension of the factors.
        alpha: numerator of the scale of the product ``B A``, see ``scaling``.
        targets: names of the adapted linear layers (the last components of their module path); ``all-linear`` adapts
            every linear layer except the output head.
        dropout: dropout rate on the adapter's input during training.
        scaling: ``rslora`` scales the product by ``alpha / sqrt(rank)``; null by ``alpha / rank``.
        variant: ``dora`` trains the magnitude of each row apart from its direction; null is plain LoRA.
    """

    name: ClassVar[str] = "lora"
    version: ClassVar[int] = 1

    rank: int = 32
    alpha: float = 4.0
    targets: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj")
    dropout: float = 0.0
    scaling: Literal["rslora"] | None = None
    variant: Literal["dora"] | None = None

    @property
    def scale(self) -> float:
        """Factor of the product ``B A``."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)

    def ordered(self) -> Lora:
        """Return the same adapter with its targets in a fixed order, each once.

        The order in which targets are listed changes nothing in the adapter, so it must not change a key either. The
        order of the layers in a decoder comes first, because keys of stored results contain it; other names follow
        alphabetically.
        """
        if self.targets == ALL_LINEAR:
            return self
        usual = [name for name in _USUAL_ORDER if name in self.targets]
        return replace(self, targets=(*usual, *sorted(set(self.targets).difference(usual))))

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*counts(self, "rank"), *positive(self, "alpha")]
        if not self.targets:
            found.append(
                Problem("targets", "is empty; expected the names of linear layers, for example [q_proj, v_proj]")
            )
        if self.targets != ALL_LINEAR and ALL_LINEAR in self.targets:
            found.append(
                Problem("targets", f"lists `{ALL_LINEAR}`, which is no layer; expected `targets={ALL_LINEAR}`")
            )
        return [*found, *below_one(self, "dropout")]


def attach(model: PreTrainedModel, lora: Lora, *, seed: int) -> PeftModel:
    """Attach a new adapter to a model, in place; it does not change the output yet: ``B`` is zero, ``m = ||W||``.

    Only the adapter requires gradients. The initialization depends only on ``seed`` and the model's shape, not on the
    device or the global random state, which is preserved.

    Raises:
        ModelError: a target does not occur in the model, or is not a linear layer.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    _check_targets(model, lora)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        lora_dropout=lora.dropout,
        use_rslora=lora.scaling == "rslora",
        use_dora=lora.variant == "dora",
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
        wrapped = get_peft_model(model, settings)
    for name, value in fresh(wrapped, seed=seed).items():
        wrapped.get_parameter(name).data.copy_(value)
    return wrapped


def of_products(model: PreTrainedModel, products: Mapping[str, tuple[Tensor, Tensor]]) -> PeftModel:
    """Attach an adapter that adds given products of factors to matrices, in place.

    Args:
        model: a model without an adapter.
        products: factors ``[out, rank]`` and ``[rank, in]`` of one rank, by module name: for all layers of a name or
            none.
    """
    names = tuple(dict.fromkeys(name.rpartition(".")[2] for name in products))
    (rank,) = {out.shape[1] for out, _ in products.values()}
    wrapped = attach(model, Lora(rank=rank, alpha=rank, targets=names), seed=0)
    for name, (out, into) in products.items():
        layer: Any = wrapped.get_base_model().get_submodule(name)
        layer.lora_B["default"].weight.data.copy_(out)
        layer.lora_A["default"].weight.data.copy_(into)
    return wrapped


def fresh(model: PeftModel, *, seed: int) -> dict[str, Tensor]:
    """Return the initial values of a new adapter of the model's shape, on the CPU, by parameter name."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    initial = {}
    for name, factor in model.named_parameters():
        if _MAGNITUDE in name:
            initial[name] = _row_norms(model, name)
        elif _is_factor(name):
            initial[name] = torch.zeros(factor.shape, dtype=torch.float32)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(initial[name], a=math.sqrt(5), generator=rng)
    return initial


def detach(model: PreTrainedModel | PeftModel) -> None:
    """Remove all adapters, in place; the base layers are restored exactly."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base.set_submodule(name, module.get_base_layer())
    base.__dict__.pop("peft_config", None)
    base.disable_input_require_grads()


def factors(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of the adapter's factors, and with DoRA its magnitudes, on the CPU, by parameter name."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if _is_factor(name)}


def has_adapter(model: Module) -> bool:
    """Return whether an adapter is attached to a model."""
    return any(_is_factor(name) for name, _ in model.named_parameters())


def trained_pairs(model: Module) -> list[tuple[str, str]]:
    """Return the names of the factors ``A`` and ``B`` of every layer with a trainable plain LoRA adapter.

    Raises:
        ModelError: something else is trainable, or nothing is.
    """
    return pairs_of([name for name, parameter in model.named_parameters() if parameter.requires_grad])


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names of the factors ``A`` and ``B`` of every layer among those of all trainable parameters.

    Raises:
        ModelError: there are others than factors of plain LoRA, or none at all.
    """
    found = [(name, name.replace(".lora_A.", ".lora_B.")) for name in names if ".lora_A." in name]
    if not found or {name for pair in found for name in pair} != set(names):
        raise ModelError("what is trained is not plain LoRA; expected the factors A and B of linear layers only")
    return found


def resize(model: Module, rank: int) -> None:
    """Give every adapted layer of a model with a plain LoRA adapter another rank, in place; scales stay.

    The factors are replaced by new parameters, filled with zeros. Afterwards, ``save`` writes an adapter of that rank.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    settings: Any = model.peft_config
    used = settings["default"]
    used.lora_alpha = used.lora_alpha * (math.sqrt(rank / used.r) if used.use_rslora else rank / used.r)
    used.r = rank
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            first, second = layer.lora_A["default"], layer.lora_B["default"]
            first.weight = torch.nn.Parameter(first.weight.new_zeros(rank, first.in_features))
            second.weight = torch.nn.Parameter(second.weight.new_zeros(second.out_features, rank))
            first.out_features = second.in_features = layer.r["default"] = rank


def save(model: PeftModel, out: Path) -> None:
    """Write the adapter to a folder: its factors as safetensors and its settings as JSON."""
    used = model.peft_config["default"]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": used.r,
        "lora_alpha": used.lora_alpha,
        "target_modules": sorted(used.target_modules),
        "lora_dropout": used.lora_dropout,
    }
    # Only where they are in use, so that adapters without them keep their bytes.
    settings |= {name: True for name in ("use_rslora", "use_dora") if getattr(used, name)}
    _write(out, {_stored_name(name): value for name, value in factors(model).items()}, settings)


def save_products(lora: Lora, products: Mapping[str, tuple[Tensor, Tensor]], out: Path) -> None:
    """Write an adapter that adds given products of factors, without a model; see ``products``.

    The adapter keeps the scale of ``lora``, so that training continues it as it would continue one of these settings.

    Args:
        lora: settings of an adapter on the same layers, of any rank; ``dropout`` and ``scaling`` are kept.
        products: factors ``[out, rank]`` and ``[rank, in]`` of one rank, by layer.
        out: the folder.
    """
    (rank,) = {first.shape[0] for _, first in products.values()}
    grown = math.sqrt(rank / lora.rank) if lora.scaling == "rslora" else rank / lora.rank
    tensors = {}
    for layer, (second, first) in products.items():
        tensors[f"{layer}.lora_A.weight"] = first.float().cpu()
        tensors[f"{layer}.lora_B.weight"] = (second / lora.scale).float().cpu()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": lora.alpha * grown,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in products}),
        "lora_dropout": lora.dropout,
        **({"use_rslora": True} if lora.scaling == "rslora" else {}),
    }
    _write(out, tensors, settings)


def _write(out: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, object]) -> None:
    from safetensors.torch import save as to_bytes

    out.mkdir(parents=True, exist_ok=True)
    # Written as bytes: `save_file` creates a file that only its owner can read, and a store is shared.
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    (out / WEIGHTS).write_bytes(to_bytes(contiguous, metadata={"format": "pt"}))
    (out / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def read(folder: Path) -> tuple[Lora, dict[str, Tensor]]:
    """Return a stored adapter's settings and its factors by parameter name.

    Raises:
        ModelError: the folder contains no readable adapter.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / SETTINGS).read_text())
        tensors = load_file(folder / WEIGHTS)
        lora = Lora(
            rank=settings["r"],
            alpha=float(settings["lora_alpha"]),
            targets=tuple(settings["target_modules"]),
            dropout=settings["lora_dropout"],
            scaling="rslora" if settings.get("use_rslora") else None,
            variant="dora" if settings.get("use_dora") else None,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder} contains no readable adapter ({type(error).__name__}: {error}); expected `{WEIGHTS}` and "
            f"`{SETTINGS}`. Remove the folder so that the stage that writes it runs again."
        ) from error
    return lora, {_parameter(name): value for name, value in tensors.items()}


def products(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what a stored plain LoRA adapter adds to each matrix, as factors ``scale * B`` and ``A``, by layer.

    Raises:
        ModelError: the folder contains no readable adapter, or its variant is not plain LoRA.
    """
    lora, stored = read(folder)
    if lora.variant is not None:
        raise ModelError(
            f"the adapter in {folder} is of the variant `{lora.variant}`, whose change of the weights is no product of "
            "factors; expected plain LoRA (`align.adapter.variant=null`)"
        )
    return {
        layer_of(name): (stored[name.replace(".lora_A.", ".lora_B.")] * lora.scale, first)
        for name, first in stored.items()
        if ".lora_A." in name
    }


def layer_of(factor: str) -> str:
    """Return the name of the layer that a factor adapts."""
    return factor.partition(".lora_")[0]


def scale_of(model: Module, layer: str) -> float:
    """Return the factor by which the product of a layer's attached adapter is scaled."""
    from peft.tuners.lora import LoraLayer

    adapted = model.get_submodule(layer)
    assert isinstance(adapted, LoraLayer)
    return float(adapted.scaling["default"])


def load(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Attach a stored adapter to a model, in place, for inference or further training.

    Raises:
        ModelError: the folder contains no readable adapter, or its shape does not fit the model.
    """
    lora, stored = read(folder)
    wrapped = attach(model, lora, seed=0)
    expected = {name: value for name, value in wrapped.named_parameters() if _is_factor(name)}
    wrong = sorted(set(expected) ^ set(stored)) or [n for n in expected if expected[n].shape != stored[n].shape]
    if wrong:
        detach(wrapped)
        raise ModelError(
            f"the adapter in {folder} does not fit the model: {len(wrong)} of {len(expected)} factors differ, first "
            f"`{wrong[0]}`; expected an adapter trained on the same base model. Check `model` in the configuration."
        )
    for name, value in expected.items():
        value.data.copy_(stored[name])
    return wrapped


def _is_factor(name: str) -> bool:
    return any(part in name for part in (".lora_A.", ".lora_B.", _MAGNITUDE))


def _row_norms(model: PeftModel, magnitude: str) -> Tensor:
    """Return the norms of the rows of a layer's matrix, ``[out]``, as peft's forward pass with float32 factors does."""
    from peft.tuners.lora import LoraLayer

    layer = model.get_submodule(magnitude.partition(_MAGNITUDE)[0])
    assert isinstance(layer, LoraLayer)
    weight = layer.get_base_layer().weight.detach().float()
    norms: Tensor = layer.lora_magnitude_vector["default"].get_weight_norm(weight, lora_weight=0.0, scaling=0.0)
    return norms.cpu()


def _stored_name(parameter: str) -> str:
    # peft stores a magnitude under the name of its module.
    return parameter.partition(_MAGNITUDE)[0] + _MAGNITUDE if _MAGNITUDE in parameter else parameter.replace(_SLOT, ".")


def _parameter(stored_name: str) -> str:
    if stored_name.endswith(_MAGNITUDE):
        return f"{stored_name}{_SLOT}weight"
    stem, _, leaf = stored_name.rpartition(".")
    return f"{stem}{_SLOT}{leaf}"


def _check_targets(model: PreTrainedModel, lora: Lora) -> None:
    from torch.nn import Linear

    if lora.targets == ALL_LINEAR:
        return
    paths = [f".{name}" for name, module in model.named_modules() if isinstance(module, Linear)]
    missing = [name for name in lora.targets if not any(path.endswith(f".{name}") for path in paths)]
    if missing:
        linear = sorted({path.rpartition(".")[2] for path in paths})
        raise ModelError(
            f"the model has no linear layer named {', '.join(f'`{name}`' for name in missing)}; expected some of "
            f"{', '.join(f'`{name}`' for name in linear)}, or `{ALL_LINEAR}`. Set them in `align.adapter.targets`."
        )
