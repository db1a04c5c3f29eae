"""A folder of a saved model, as ``save_pretrained`` writes it and the Hub distributes it: loading and inspection."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, final, runtime_checkable

from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Precision(StrEnum):
    """The dtype of the base's weights. Adapters are always float32."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Attention(StrEnum):
    """The attention implementation. Gemma 2 soft-caps attention scores, which only ``eager`` supports everywhere."""

    SDPA = "sdpa"
    EAGER = "eager"
    FLASH = "flash_attention_2"


class Opened(NamedTuple):
    """A model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Parts(NamedTuple):
    """How many parameters lie where in a decoder.

    Attributes:
        layer: in its largest layer.
        outside: outside of the layers: in embeddings, head and final norm.
    """

    layer: int
    outside: int


@runtime_checkable
class KnowsSize(Protocol):
    """Optional: a model source that knows its number of parameters before anything runs."""

    def parameters(self, modules: Sequence[str] | None = None) -> int | None:
        """Return the number of parameters, or of those in named modules; None if it is not known on this machine."""
        ...

    def parts(self) -> Parts | None:
        """Return where the parameters lie; None if it is not known on this machine."""
        ...


@final
@dataclass(frozen=True)
class SavedModel:
    """A causal language model in a folder: ``config.json``, weights as safetensors, and a tokenizer."""

    folder: Path

    def weight_files(self) -> list[Path]:
        """Return the files of the weights, whether they exist or not: those of the index, or the only one."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            return [self.folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        return [self.folder / "model.safetensors"]

    def parameters(self, modules: Sequence[str] | None = None) -> int:
        """Return the number of parameters, from the headers of the weights.

        Args:
            modules: names of modules, see ``TrainedWeights.modules``, in which alone parameters are counted.
        """
        return sum(
            size
            for name, size in self._sizes().items()
            if modules is None or not set(modules).isdisjoint(name.split(".")[:-1])
        )

    def parts(self) -> Parts:
        """Return where the parameters lie: the first number in a name is that of the layer."""
        layers: Counter[str] = Counter()
        outside = 0
        for name, size in self._sizes().items():
            number = next((part for part in name.split(".") if part.isdigit()), None)
            if number is None:
                outside += size
            else:
                layers[number] += size
        return Parts(max(layers.values(), default=0), outside)

    def _sizes(self) -> dict[str, int]:
        """Return the number of entries of each tensor."""
        from safetensors import safe_open

        found: dict[str, int] = {}
        for file in self.weight_files():
            with safe_open(file, framework="pt") as weights:
                found |= {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        return found

    def ties_head(self) -> bool:
        """Return whether the head shares the input embeddings."""
        tied = json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
        # If the configuration does not say, a model with a tied head stores no tensor for it.
        return tied if isinstance(tied, bool) else "lm_head.weight" not in self._tensors()

    def open(
        self, device: str, *, label: str, dtype: Precision, attention: Attention, gradient_checkpointing: bool
    ) -> Opened:
        """Load model and tokenizer onto a device.

        Args:
            device: a torch device string.
            label: the model's name in messages.
            dtype: dtype of the weights.
            attention: attention implementation.
            gradient_checkpointing: recompute activations in the backward pass.

        Raises:
            ModelError: the model does not fit into memory, or the installed libraries cannot load it.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._check_memory(device, label, dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=getattr(torch, dtype.value),
                attn_implementation=attention.value,
                device_map=device,
                local_files_only=True,
                use_safetensors=True,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(_too_large(label, self.parameters(), dtype, device, "less memory free")) from error
        except (ImportError, ValueError, OSError, SafetensorError) as error:
            raise ModelError(
                f"the installed libraries cannot load `{label}` with attention `{attention.value}`: {error}. "
                "Set `model.source.attention`, or upgrade `transformers`."
            ) from error
        if gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in later releases of transformers
                model.gradient_checkpointing_enable({"use_reentrant": False})
        return Opened(model, tokenizer)

    def _tensors(self) -> set[str]:
        from safetensors import safe_open

        names: set[str] = set()
        for file in self.weight_files():
            with safe_open(file, framework="numpy") as weights:
                names |= set(weights.keys())
        return names

    def _check_memory(self, device: str, label: str, dtype: Precision) -> None:
        import psutil
        import torch

        on_gpu = device.startswith("cuda")
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        parameters = self.parameters()
        if parameters * _BYTES[dtype.value] > free:
            raise ModelError(_too_large(label, parameters, dtype, device, f"{free / 2**30:.1f} GiB free"))


def missing_packages(attention: Attention) -> list[Problem]:
    """Return which package an attention implementation lacks."""
    if attention is Attention.FLASH and importlib.util.find_spec("flash_attn") is None:
        text = "`flash_attention_2` needs the package `flash-attn`; install it, or choose `sdpa`"
        return [Problem("model.source.attention", text)]
    return []


def _too_large(label: str, parameters: int, dtype: Precision, device: str, free: str) -> str:
    needed = parameters * _BYTES[dtype.value] / 2**30
    return (
        f"`{label}` needs {needed:.1f} GiB for its weights in {dtype.value}; `{device}` has {free}. "
        "Choose a smaller `model`, a smaller `model.source.dtype`, or a machine with more memory."
    )
