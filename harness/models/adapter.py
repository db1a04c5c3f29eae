"""LoRA adapters: initialize, attach, save, load and detach.

LoRA (Hu et al., 2021, arXiv:2106.09685): a linear layer ``y = W x`` becomes ``y = W x + (alpha / rank) B A x`` with
``A`` of shape ``[rank, in]``, initialized uniformly (Kaiming, ``a = sqrt(5)``), and ``B`` of shape ``[out, rank]``,
initialized to zero.

Factors are float32 whatever the dtype of the base: methods that perturb weights by 1e-5 per entry need the resolution.
Files follow the conventions of ``peft``, so that ``PeftModel.from_pretrained(base, folder)`` reads a stored adapter.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.engine.checks import below_one, counts, positive
from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
_SLOT = ".default."


@final
@dataclass(frozen=True, kw_only=True)
class Lora:
    """Hyperparameters of an adapter. The defaults are those of Booster, Panacea and Virus.

    Attributes:
        rank: inner dimension of the factors.
        alpha: the product ``B A`` is scaled by ``alpha / rank``.
        targets: names of the adapted linear layers (the last component of their module path).
        dropout: dropout rate on the adapter's input during training.
    """

    name: ClassVar[str] = "lora"
    version: ClassVar[int] = 1

    rank: int = 32
    alpha: float = 4.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    dropout: float = 0.0

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*counts(self, "rank"), *positive(self, "alpha")]
        if not self.targets:
            found.append(
                Problem("targets", "is empty; expected the names of linear layers, for example [q_proj, v_proj]")
            )
        return [*found, *below_one(self, "dropout")]


def attach(model: PreTrainedModel, lora: Lora, *, seed: int) -> PeftModel:
    """Attach a new adapter to a model, in place; it does not change the output yet (``B`` is zero).

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
        target_modules=list(lora.targets),
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
        wrapped = get_peft_model(model, settings)
    for name, value in fresh(wrapped, seed=seed).items():
        wrapped.get_parameter(name).data.copy_(value)
    return wrapped


def fresh(model: PeftModel, *, seed: int) -> dict[str, Tensor]:
    """Return the initial factors of a new adapter of the model's shape, on the CPU, by parameter name."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    initial = {}
    for name, factor in model.named_parameters():
        if _is_factor(name):
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
    """Return copies of the adapter's factors on the CPU, by parameter name."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if _is_factor(name)}


def trained_pairs(model: Module) -> list[tuple[str, str]]:
    """Return the names of the factors ``A`` and ``B`` of every adapted layer whose factors are trainable.

    Raises:
        ModelError: there is none.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = [(name, name.replace(".lora_A.", ".lora_B.")) for name in trainable if ".lora_A." in name]
    if not found or {name for pair in found for name in pair} != set(trainable):
        raise ModelError("what is trained is not an adapter; expected the factors A and B of adapted linear layers")
    return found


def save(model: PeftModel, out: Path) -> None:
    """Write the adapter to a folder: its factors as safetensors and its settings as JSON."""
    from safetensors.torch import save as to_bytes

    used = model.peft_config["default"]
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name.replace(_SLOT, "."): value.contiguous() for name, value in factors(model).items()}
    # Written as bytes: `save_file` creates a file that only its owner can read, and a store is shared.
    (out / WEIGHTS).write_bytes(to_bytes(tensors, metadata={"format": "pt"}))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": used.r,
        "lora_alpha": used.lora_alpha,
        "target_modules": sorted(used.target_modules),
        "lora_dropout": used.lora_dropout,
    }
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
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder} contains no readable adapter ({type(error).__name__}: {error}); expected `{WEIGHTS}` and "
            f"`{SETTINGS}`. Remove the folder so that the stage that writes it runs again."
        ) from error
    return lora, {_parameter(name): value for name, value in tensors.items()}


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
    return ".lora_A." in name or ".lora_B." in name


def _parameter(stored_name: str) -> str:
    stem, _, leaf = stored_name.rpartition(".")
    return f"{stem}{_SLOT}{leaf}"


def _check_targets(model: PreTrainedModel, lora: Lora) -> None:
    from torch.nn import Linear

    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, Linear)}
    missing = [name for name in lora.targets if name not in linear]
    if missing:
        raise ModelError(
            f"the model has no linear layer named {', '.join(f'`{name}`' for name in missing)}; expected some of "
            f"{', '.join(f'`{name}`' for name in sorted(linear))}. Set them in `adapter.targets`."
        )
