"""Base models of the Hugging Face Hub, pinned to a commit.

The artifact of such a base is a small reference file; the weights stay in the Hub's cache, which other programs share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from harness.errors import ModelError, Problem
from harness.models.quantized import Quantization
from harness.models.saved import Attention, Opened, Parts, Precision, SavedModel, missing_packages, write_reference

REFERENCE = "reference.json"
_FILES = ["*.json", "*.jinja", "*.safetensors", "*.tiktoken", "merges.txt", "tokenizer.model"]
_UNUSED = ["consolidated*.safetensors"]
"""A second copy of the weights in another layout, as Mistral distributes them."""


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
        quantized: ``nf4`` quantizes the matrices of linear layers to 4 bits, see ``harness.models.quantized``; null
            keeps them in ``dtype``.
    """

    name: ClassVar[str] = "hub"
    version: ClassVar[int] = 1

    repo: str
    revision: str | None = None
    dtype: Precision = Precision.BFLOAT16
    attention: Attention = Attention.SDPA
    gradient_checkpointing: bool = False
    quantized: Quantization | None = None

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

        found: list[Problem] = []
        if self.revision is None:
            found.append(Problem("", self._unpinned()))
        elif constants.HF_HUB_OFFLINE and self._cached() is None:
            found.append(Problem("", self._offline()))
        return [*found, *missing_packages(self.attention, self.quantized)]

    def at_hand(self) -> bool:
        """Return whether the model is in the Hub's cache."""
        return self.revision is not None and self._cached() is not None

    def tokenizer_folder(self) -> Path | None:
        """Return the folder of the tokenizer; None if the model is not in the Hub's cache."""
        return self._cached() if self.revision is not None else None

    def ties_head(self) -> bool | None:
        """Return whether the head shares the input embeddings; None if the model is not in the Hub's cache."""
        folder = self.tokenizer_folder()
        return None if folder is None else SavedModel(folder).ties_head()

    def parameters(self, modules: Sequence[str] | None = None) -> int | None:
        """Return the number of parameters, or of those in modules; None if the model is not in the Hub's cache."""
        folder = self.tokenizer_folder()
        return None if folder is None else SavedModel(folder).parameters(modules)

    def parts(self) -> Parts | None:
        """Return where the parameters lie; None if the model is not in the Hub's cache."""
        folder = self.tokenizer_folder()
        return None if folder is None else SavedModel(folder).parts()

    def loaded_bytes(self) -> int | None:
        """Return the bytes of the weights in memory; None if the model is not in the Hub's cache."""
        folder = self.tokenizer_folder()
        return None if folder is None else SavedModel(folder).bytes(self.dtype, self.quantized)

    def fetch(self) -> str:
        """Download the model into the Hub's cache unless it is there; return its name, commit and size.

        Raises:
            ModelError: it is not pinned, gated, unknown, or unreachable.
        """
        return f"{self.repo} at {self.revision}, {SavedModel(self.folder()).parameters() / 1e9:.1f}B parameters"

    def write(self, out: Path) -> Mapping[str, object]:
        """Download the weights if needed and write a reference to them; return facts.

        Raises:
            ModelError: the model is not available on this machine.
        """
        saved = SavedModel(self.folder())
        write_reference(out / REFERENCE, self)
        return {"repo": self.repo, "revision": self.revision, **saved.facts(self.dtype, self.quantized)}

    def open(self, device: str) -> Opened:
        """Load model and tokenizer onto a device.

        Raises:
            ModelError: the model is not available, does not fit into memory, or the installed libraries cannot load it.
        """
        return SavedModel(self.folder()).open(
            device,
            label=self.repo,
            dtype=self.dtype,
            attention=self.attention,
            gradient_checkpointing=self.gradient_checkpointing,
            quantized=self.quantized,
        )

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
            return Path(
                snapshot_download(self.repo, revision=self.revision, allow_patterns=_FILES, ignore_patterns=_UNUSED)
            )
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
        return folder if tokenizer and all(file.exists() for file in SavedModel(folder).weight_files()) else None

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
            quantized=Quantization(known["quantized"]) if "quantized" in known else None,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is not a reference to a Hub model ({type(error).__name__}: {error}). Remove the folder so that "
            "the stage that writes it runs again."
        ) from error
