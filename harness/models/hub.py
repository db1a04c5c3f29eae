"""Base models of the Hugging Face Hub, pinned to a commit.

The artifact of such a base is a small reference file; the weights stay in the Hub's cache, which other programs share.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from harness.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference.json"
_FILES = ["*.json", "*.jinja", "*.safetensors", "*.tiktoken", "merges.txt", "tokenizer.model"]
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


@final
@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A causal language model of the Hub.

    Attributes:
        repo: ``owner/name``.
        revision: the commit, 40 hex digits. Required, because a branch can change.
        dtype: dtype of the weights.
        attention: attention implementation.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    name: ClassVar[str] = "hub"
    version: ClassVar[int] = 1

    repo: str
    revision: str | None = None
    dtype: Precision = Precision.BFLOAT16
    attention: Attention = Attention.SDPA
    gradient_checkpointing: bool = False

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = []
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            found.append(Problem("repo", f"`{self.repo}` is not a repository; expected `owner/name`"))
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            found.append(
                Problem("revision", f"`{self.revision}` is not a commit; expected 40 hex digits in lower case")
            )
        return found

    def preflight(self) -> list[Problem]:
        """Return what is missing: a pinned revision, or, if the Hub is set offline, the files; uses no network."""
        from huggingface_hub import constants

        found = []
        if self.revision is None:
            found.append(Problem("", self._unpinned()))
        elif constants.HF_HUB_OFFLINE and self._cached() is None:
            found.append(Problem("", self._offline()))
        if self.attention is Attention.FLASH and importlib.util.find_spec("flash_attn") is None:
            text = "`flash_attention_2` needs the package `flash-attn`; install it, or choose `sdpa`"
            found.append(Problem("model.source.attention", text))
        return found

    def at_hand(self) -> bool:
        """Return whether the model is in the Hub's cache."""
        return self.revision is not None and self._cached() is not None

    def ties_head(self) -> bool | None:
        """Return whether the head shares the input embeddings; None if the model is not in the Hub's cache."""
        folder = self._cached() if self.revision is not None else None
        if folder is None:
            return None
        tied = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
        # If the configuration does not say, a model with a tied head stores no tensor for it.
        return tied if isinstance(tied, bool) else "lm_head.weight" not in _tensors(folder)

    def fetch(self) -> str:
        """Download the model into the Hub's cache unless it is there; return its name, commit and size.

        Raises:
            ModelError: it is not pinned, gated, unknown, or unreachable.
        """
        return f"{self.repo} at {self.revision}, {_parameters(self.folder()) / 1e9:.1f}B parameters"

    def write(self, out: Path) -> Mapping[str, object]:
        """Download the weights if needed and write a reference to them; return facts.

        Raises:
            ModelError: the model is not available on this machine.
        """
        folder = self.folder()
        (out / REFERENCE).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")
        return {"repo": self.repo, "revision": self.revision, "parameters": _parameters(folder)}

    def open(self, device: str) -> Opened:
        """Load model and tokenizer onto a device.

        Raises:
            ModelError: the model is not available, does not fit into memory, or the installed libraries cannot load it.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = self.folder()
        self._check_memory(folder, device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, self.dtype.value),
                attn_implementation=self.attention.value,
                device_map=device,
                local_files_only=True,
                use_safetensors=True,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ModelError(self._too_large(_parameters(folder), device, "less memory free")) from error
        except (ImportError, ValueError, OSError, SafetensorError) as error:
            raise ModelError(
                f"the installed libraries cannot load `{self.repo}` with attention `{self.attention.value}`: {error}. "
                "Set `model.source.attention`, or upgrade `transformers`."
            ) from error
        if self.gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in later releases of transformers
                model.gradient_checkpointing_enable({"use_reentrant": False})
        return Opened(model, tokenizer)

    def folder(self) -> Path:
        """Return the folder of the model's files, downloading them to the Hub's cache if necessary.

        Raises:
            ModelError: it is not pinned, gated, unknown, or out of reach.
        """
        from huggingface_hub import errors, snapshot_download

        if self.revision is None:
            raise ModelError(self._unpinned())
        cached = self._cached()
        if cached is not None:
            return cached
        try:
            return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=_FILES))
        except errors.GatedRepoError as error:
            raise ModelError(self._gated()) from error
        except errors.RevisionNotFoundError as error:
            raise ModelError(
                f"`{self.repo}` has no commit {self.revision}; expected one from its history at "
                f"https://huggingface.co/{self.repo}/commits/main. Set `model.source.revision`."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"`{self.repo}` does not exist on the Hub, or is private; expected a repository that this machine can "
                "read. Check `model.source.repo`; for a private repository log in with `hf auth login`."
            ) from error
        except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError) as error:
            raise ModelError(f"{self._offline()} ({type(error).__name__})") from error

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, "config.json", revision=self.revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
        tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
        return folder if tokenizer and all(file.exists() for file in _weight_files(folder)) else None

    def _check_memory(self, folder: Path, device: str) -> None:
        import psutil
        import torch

        on_gpu = device.startswith("cuda")
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        parameters = _parameters(folder)
        if parameters * _BYTES[self.dtype.value] > free:
            raise ModelError(self._too_large(parameters, device, f"{free / 2**30:.1f} GiB free"))

    def _too_large(self, parameters: int, device: str, free: str) -> str:
        needed = parameters * _BYTES[self.dtype.value] / 2**30
        return (
            f"`{self.repo}` needs {needed:.1f} GiB for its weights in {self.dtype.value}; `{device}` has {free}. "
            "Choose a smaller `model`, a smaller `model.source.dtype`, or a machine with more memory."
        )

    def _unpinned(self) -> str:
        return (
            f"`{self.repo}` is not pinned; expected the commit of the Hub to use, 40 hex digits. "
            f"Set `model.source.revision` (https://huggingface.co/{self.repo}/commits/main)."
        )

    def _gated(self) -> str:
        from huggingface_hub import get_token

        state = "this machine has no token" if get_token() is None else "the token of this machine has no access"
        return (
            f"`{self.repo}` is gated and {state}. Accept its licence at https://huggingface.co/{self.repo}, then set "
            "the environment variable `HF_TOKEN` or run `hf auth login`."
        )

    def _offline(self) -> str:
        return (
            f"`{self.repo}` at {self.revision} is not in the local Hub cache and the Hub cannot be reached. Run "
            "`harness doctor --fetch` on a machine with network access, or set `HF_HOME` to a cache that contains it."
        )


def open_reference(folder: Path, device: str) -> Opened:
    """Load the Hub model that a ``reference.json`` points to.

    Raises:
        ModelError: as ``HubModel.open``, or the reference cannot be read.
    """
    return _referred(folder).open(device)


def files_of_reference(folder: Path) -> tuple[Path, Precision]:
    """Return the folder of the files that a ``reference.json`` points to, and the number type of the weights.

    Raises:
        ModelError: the model cannot be had on this machine, or the reference cannot be read.
    """
    source = _referred(folder)
    return source.folder(), source.dtype


def _referred(folder: Path) -> HubModel:
    path = folder / REFERENCE
    try:
        known = json.loads(path.read_text())
        return HubModel(
            repo=known["repo"],
            revision=known["revision"],
            dtype=Precision(known["dtype"]),
            attention=Attention(known["attention"]),
            gradient_checkpointing=known["gradient_checkpointing"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is not a reference to a Hub model ({type(error).__name__}: {error}). Remove the folder so that "
            "the stage that writes it runs again."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return [folder / "model.safetensors"]


def _tensors(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for file in _weight_files(folder):
        with safe_open(file, framework="numpy") as weights:
            names |= set(weights.keys())
    return names


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    total = 0
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total
