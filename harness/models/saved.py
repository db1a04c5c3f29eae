"""A folder of a saved model, as ``save_pretrained`` writes it and the Hub distributes it: loading and inspection."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, final, runtime_checkable

from harness.errors import ModelError, Problem
from harness.models.quantized import BITS, Quantization, keep_layout, loading_options, missing_package

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
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
            math.prod(shape)
            for name, shape in self._shapes().items()
            if modules is None or not set(modules).isdisjoint(name.split(".")[:-1])
        )

    def bytes(self, dtype: Precision, quantized: Quantization | None = None) -> int:
        """Return the bytes of the weights in memory, from their shapes; only matrices in layers are quantized."""
        whole = packed = 0
        for name, shape in self._shapes().items():
            if quantized is not None and len(shape) == 2 and _layer_of(name) is not None:
                packed += math.prod(shape)
            else:
                whole += math.prod(shape)
        return whole * _BYTES[dtype.value] + math.ceil(packed * BITS / 8)

    def facts(self, dtype: Precision, quantized: Quantization | None) -> dict[str, object]:
        """Return the number of parameters and, of a quantized model, its form and the bytes of its weights."""
        found: dict[str, object] = {"parameters": self.parameters()}
        if quantized is not None:
            found |= {"quantized": quantized.value, "bytes": self.bytes(dtype, quantized)}
        return found

    def parts(self) -> Parts:
        """Return where the parameters lie: the first number in a name is that of the layer."""
        layers: Counter[str] = Counter()
        outside = 0
        for name, shape in self._shapes().items():
            number = _layer_of(name)
            if number is None:
                outside += math.prod(shape)
            else:
                layers[number] += math.prod(shape)
        return Parts(max(layers.values(), default=0), outside)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        from safetensors import safe_open

        found: dict[str, tuple[int, ...]] = {}
        for file in self.weight_files():
            with safe_open(file, framework="pt") as weights:
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        return found

    def ties_head(self) -> bool:
        """Return whether the head shares the input embeddings."""
        tied = json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
        # If the configuration does not say, a model with a tied head stores no tensor for it.
        return tied if isinstance(tied, bool) else "lm_head.weight" not in self._tensors()

    def open(
        self,
        device: str,
        *,
        label: str,
        dtype: Precision,
        attention: Attention,
        gradient_checkpointing: bool,
        quantized: Quantization | None = None,
    ) -> Opened:
        """Load model and tokenizer onto a device.

        Args:
            device: a torch device string.
            label: the model's name in messages.
            dtype: dtype of the weights.
            attention: attention implementation.
            gradient_checkpointing: recompute activations in the backward pass.
            quantized: the form of the matrices in memory; None is ``dtype``.

        Raises:
            ModelError: the model does not fit into memory, or the installed libraries cannot load it.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        for problem in missing_package(quantized):
            raise ModelError(f"`{label}` cannot be loaded: {problem.text}")
        self._check_memory(device, label, dtype, quantized)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=getattr(torch, dtype.value),
                attn_implementation=attention.value,
                device_map=device,
                local_files_only=True,
                use_safetensors=True,
                **loading_options(quantized, getattr(torch, dtype.value)),
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            needed = self.bytes(dtype, quantized)
            raise ModelError(_too_large(label, needed, quantized or dtype, device, "less memory free")) from error
        except (ImportError, ValueError, OSError, SafetensorError) as error:
            raise ModelError(
                f"the installed libraries cannot load `{label}` with attention `{attention.value}`: {error}. "
                "Set `model.source.attention`, or upgrade `transformers`."
            ) from error
        if quantized is not None:
            keep_layout(model, label)
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

    def _check_memory(self, device: str, label: str, dtype: Precision, quantized: Quantization | None) -> None:
        import psutil
        import torch

        on_gpu = device.startswith("cuda")
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        needed = self.bytes(dtype, quantized)
        if needed > free:
            raise ModelError(_too_large(label, needed, quantized or dtype, device, f"{free / 2**30:.1f} GiB free"))


def missing_packages(attention: Attention, quantized: Quantization | None = None) -> list[Problem]:
    """Return which packages an attention implementation and quantized weights lack."""
    found = missing_package(quantized)
    if attention is Attention.FLASH and importlib.util.find_spec("flash_attn") is None:
        text = "`flash_attention_2` needs the package `flash-attn`; install it, or choose `sdpa`"
        found.append(Problem("model.source.attention", text))
    return found


def write_reference(path: Path, source: DataclassInstance) -> None:
    """Write the settings of a model source, from which its model is loaded; a null is left out, as from a key."""
    known = {name: value for name, value in asdict(source).items() if value is not None}
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def _layer_of(name: str) -> str | None:
    """Return the number of the layer that a tensor lies in; None if it lies outside of the layers."""
    return next((part for part in name.split(".") if part.isdigit()), None)


def _too_large(label: str, needed: int, form: Precision | Quantization, device: str, free: str) -> str:
    return (
        f"`{label}` needs {needed / 2**30:.1f} GiB for its weights in {form.value}; `{device}` has {free}. "
        "Choose a smaller `model`, a smaller `model.source.dtype`, or a machine with more memory."
    )
