"""Base models in a folder of this machine, identified by their content.

The folder is what ``save_pretrained`` writes. It is hashed when a run is planned, and the key has the hash and not the
path: a copy elsewhere is the same model, and a changed folder another one. The artifact of such a base is a small
reference file; the weights stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self, final

from harness.engine.files import read_json, write_json
from harness.errors import ModelError, Problem, UnreadableFile
from harness.models.quantized import Quantization
from harness.models.saved import Attention, Opened, Parts, Precision, SavedModel, missing_packages, write_reference

REFERENCE = "local.json"
_FILES = ("*.json", "*.jinja", "*.tiktoken", "merges.txt", "tokenizer.model")
"""The files next to the weights that a model or its tokenizer is loaded from."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_UNSETTLED_SECONDS = 2
"""A file changed this recently may change again without another time stamp, so its hash is not remembered."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder and the hash of its content; only the hash is part of a key.

    Attributes:
        path: the absolute path.
        sha256: hash of the names and contents of the files that are loaded.
    """

    name: ClassVar[str] = "model_folder"
    version: ClassVar[int] = 1

    path: str
    sha256: str

    @property
    def key(self) -> str:
        """The content, which represents the folder in the key of a stage."""
        return self.sha256

    @classmethod
    def parse(cls, text: str) -> Self:
        """Hash a folder.

        Raises:
            ModelError: the folder contains no model with weights as safetensors.
        """
        if not text:
            raise ModelError("no folder is given; expected the path of a saved model. Set `model.source.path`")
        path = Path(text).expanduser().absolute()
        return cls(path=str(path), sha256=content_of(path))


@final
@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A causal language model in a folder of this machine.

    Attributes:
        path: the folder.
        dtype: dtype of the weights.
        attention: attention implementation.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        quantized: ``nf4`` quantizes the matrices of linear layers to 4 bits, see ``harness.models.quantized``; null
            keeps them in ``dtype``.
    """

    name: ClassVar[str] = "local_model"
    version: ClassVar[int] = 1

    path: ModelFolder
    dtype: Precision = Precision.BFLOAT16
    attention: Attention = Attention.SDPA
    gradient_checkpointing: bool = False
    quantized: Quantization | None = None

    def preflight(self) -> list[Problem]:
        """Return why the model cannot be loaded: its folder is missing or has changed, or a package is missing."""
        found: list[Problem] = []
        try:
            self.folder()
        except ModelError as error:
            found.append(Problem("model.source.path", str(error)))
        return [*found, *missing_packages(self.attention, self.quantized)]

    def tokenizer_folder(self) -> Path:
        """Return the folder of the tokenizer."""
        return Path(self.path.path)

    def ties_head(self) -> bool | None:
        """Return whether the head shares the input embeddings; None if the folder cannot be read."""
        try:
            return SavedModel(self.folder()).ties_head()
        except ModelError:
            return None

    def parameters(self, modules: Sequence[str] | None = None) -> int | None:
        """Return the number of parameters, or of those in modules; None if the folder cannot be read."""
        try:
            return SavedModel(self.folder()).parameters(modules)
        except ModelError:
            return None

    def parts(self) -> Parts | None:
        """Return where the parameters lie; None if the folder cannot be read."""
        try:
            return SavedModel(self.folder()).parts()
        except ModelError:
            return None

    def loaded_bytes(self) -> int | None:
        """Return the bytes of the weights in memory; None if the folder cannot be read."""
        try:
            return SavedModel(self.folder()).bytes(self.dtype, self.quantized)
        except ModelError:
            return None

    def write(self, out: Path) -> Mapping[str, object]:
        """Write a reference to the folder; return facts.

        Raises:
            ModelError: the folder is missing or has changed.
        """
        saved = SavedModel(self.folder())
        write_reference(out / REFERENCE, self)
        return {**asdict(self.path), **saved.facts(self.dtype, self.quantized)}

    def open(self, device: str) -> Opened:
        """Load model and tokenizer onto a device.

        Raises:
            ModelError: the folder is missing or has changed, the model does not fit into memory, or the installed
                libraries cannot load it.
        """
        return SavedModel(self.folder()).open(
            device,
            label=self.path.path,
            dtype=self.dtype,
            attention=self.attention,
            gradient_checkpointing=self.gradient_checkpointing,
            quantized=self.quantized,
        )

    def folder(self) -> Path:
        """Return the folder after checking its content.

        Raises:
            ModelError: it is missing or has changed.
        """
        folder = Path(self.path.path)
        if content_of(folder) != self.path.sha256:
            raise ModelError(
                f"{folder} has changed since this run was planned; expected the content with the hash "
                f"{self.path.sha256[:16]}. Restore it, or run the sweep again: the changed model has stages of its own"
            )
        return folder


def open_local(folder: Path, device: str) -> Opened:
    """Load the model that a ``local.json`` points to.

    Raises:
        ModelError: as ``LocalModel.open``, or the reference cannot be read.
    """
    return _referred(folder).open(device)


def files_of_local(folder: Path) -> tuple[Path, Precision]:
    """Return the folder of the files that a ``local.json`` points to, and the dtype of the weights.

    Raises:
        ModelError: the folder is missing or has changed, or the reference cannot be read.
    """
    source = _referred(folder)
    return source.folder(), source.dtype


def _referred(folder: Path) -> LocalModel:
    path = folder / REFERENCE
    try:
        known = json.loads(path.read_text())
        return LocalModel(
            path=ModelFolder(**known["path"]),
            dtype=Precision(known["dtype"]),
            attention=Attention(known["attention"]),
            gradient_checkpointing=known["gradient_checkpointing"],
            quantized=Quantization(known["quantized"]) if "quantized" in known else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a reference to a local model ({type(error).__name__}: {error}). Remove the folder so that "
            "the stage that writes it runs again."
        ) from error


def content_of(folder: Path) -> str:
    """Return the hash of a model's content; a file is read again only if its size or time stamp has changed.

    Raises:
        ModelError: the folder contains no model with weights as safetensors and a tokenizer, or cannot be read.
    """
    try:
        files = _files(folder)
        remembered = _remembered(folder)
        known = {path.name: _hashed(path, remembered) for path in files}
    except OSError as error:
        raise ModelError(f"{folder} cannot be read ({error}); expected a folder with a saved model") from error
    settled = {name: entry for name, entry in known.items() if entry[1] < time.time_ns() - _UNSETTLED_SECONDS * 10**9}
    if settled != remembered:
        _remember(folder, settled)
    lines = "".join(f"{digest} {name}\n" for name, (_, _, digest) in sorted(known.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


_Entry = tuple[int, int, str]
"""Size in bytes, time of the last change in ns, and sha256 of a file."""


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; expected one with a saved model. Set `model.source.path`")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no `config.json`; expected what `save_pretrained` writes")
    try:
        weights = SavedModel(folder).weight_files()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the index of the weights in {folder} cannot be read ({type(error).__name__}: {error}); expected the one "
            "that `save_pretrained` writes"
        ) from error
    if missing := [path.name for path in weights if not path.is_file()]:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"{folder} has no `{missing[0]}`, but {', '.join(f'`{name}`' for name in pickles)}: such files are "
                "pickles, and loading one can run any code that is in it; expected weights as safetensors. Load the "
                "model where it is trusted and write it with `save_pretrained`"
            )
        raise ModelError(f"{folder} has no `{missing[0]}`; expected weights as safetensors")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(
            f"{folder} has no tokenizer; expected `tokenizer.json` or `tokenizer.model` next to the weights"
        )
    others = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted({*others, *weights})


def _hashed(path: Path, remembered: Mapping[str, _Entry]) -> _Entry:
    state = path.stat()
    known = remembered.get(path.name)
    if known is not None and known[:2] == (state.st_size, state.st_mtime_ns):
        return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return state.st_size, state.st_mtime_ns, digest


def _memory(folder: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "harness" / "models" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"


def _remembered(folder: Path) -> dict[str, _Entry]:
    try:
        known = read_json(_memory(folder))
        return {str(name): (int(size), int(changed), str(digest)) for name, (size, changed, digest) in known.items()}
    except (UnreadableFile, ValueError, TypeError, AttributeError):
        return {}  # The files are hashed again.


def _remember(folder: Path, known: Mapping[str, _Entry]) -> None:
    path = _memory(folder)
    with suppress(OSError):  # Without a writable cache the files are hashed every time.
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
