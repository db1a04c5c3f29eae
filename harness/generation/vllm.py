"""Greedy decoding with vLLM, in a separate process with its own interpreter, because vLLM pins its version of PyTorch.

One inference server handles consecutive stages of one base model; adapters are sent as LoRA requests. It replaces the
base model that this process would load, and is stopped when something else needs the GPU. A base with merged adapters
is saved for it first, rounded to the base's dtype, as it was when the fresh adapter was trained on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

from harness.corpora.encode import Question
from harness.corpora.thoughts import Thoughts
from harness.engine import gpu
from harness.errors import ModelError
from harness.execution.cluster import VLLM_PYTHON
from harness.generation import answers
from harness.generation.decoding import Decoding
from harness.models import local
from harness.models.adapter import read
from harness.models.hub import REFERENCE, files_of_reference
from harness.models.loading import ModelRef, loaded_model, serve, served

SCRIPT = Path(__file__).parent / "inference_server" / "vllm_server.py"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM supports; other ranks are rounded up. An adapter of a higher rank is merged instead."""
SHARE = 0.9
"""Share of this process's GPU memory that vLLM may allocate."""
_LAST = 2000
"""Characters of the server's stderr quoted in an error message."""


@dataclass(frozen=True, kw_only=True)
class _Base:
    """What a server serves: the weights, and the maximum LoRA rank (None: no adapters)."""

    key: tuple[str, tuple[str, ...]]
    rank: int | None

    def covers(self, other: Self) -> bool:
        return self.key == other.key and (other.rank is None or (self.rank is not None and self.rank >= other.rank))


class VllmServer:
    """An inference server process running vLLM.

    Attributes:
        version: version of vLLM.

    Args:
        python: Python interpreter.
        base: what it serves.
        arguments: arguments of ``vllm.LLM``.
        environment: environment variables of the process.

    Raises:
        ModelError: the interpreter cannot be started or lacks vLLM, or vLLM cannot load the model.
    """

    def __init__(
        self, python: str, base: _Base, arguments: Mapping[str, Any], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process and wait until it is ready."""
        self.base = base
        # A file instead of a pipe, which would block the server once it is full.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                [python, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                text=True,
                encoding="utf-8",
                env=dict(environment or os.environ),
            )
        except OSError as error:
            raise ModelError(
                f"the interpreter of vLLM, `{python}`, cannot be started ({error.strerror}); expected the path of a "
                f"Python that has vLLM. Set `cluster.vllm_python` or {VLLM_PYTHON} (docs/generation.md)."
            ) from error
        # Also runs when the server is garbage collected and when this process exits.
        self._ends = weakref.finalize(self, _end, self._process, self._printed)
        ready = self._asked(arguments)
        if "missing" in ready:
            self.close()
            raise ModelError(
                f"the interpreter of vLLM, `{python}`, has no vLLM ({ready['missing']}); install it there "
                f"(`{python} -m pip install vllm`), or set `cluster.vllm_python` (docs/generation.md)."
            )
        self.version = str(ready["version"])

    def tokens(
        self, prompts: Sequence[Sequence[int]], *, new_tokens: int, ends: Sequence[int], folder: Path | None
    ) -> list[list[int]]:
        """Return the greedy continuation of each prompt as token ids.

        Args:
            prompts: token ids.
            new_tokens: maximum number of new tokens.
            ends: end-of-sequence token ids.
            folder: the adapter's folder; None for the base alone.

        Raises:
            ModelError: the server process has exited.
        """
        request = {
            "prompts": prompts,
            "new_tokens": new_tokens,
            "ends": ends,
            "adapter": folder and str(folder.resolve()),
        }
        found: list[list[int]] = self._asked(request)["tokens"]
        return found

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def close(self) -> None:
        """Stop the process and wait until it has exited and its GPU memory is free."""
        self._ends()

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # If the process has exited, the write fails; its last reply, or its stderr, says why.
        with suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace")[-_LAST:]
        raise ModelError(
            f"vLLM ended with exit code {code}. The end of what it printed:\n{printed}\nExpected a model, an adapter "
            "and a device that vLLM supports (docs/generation.md); `evaluation.decoding.engine=null` decodes without."
        )


def _end(process: subprocess.Popen[str], printed: IO[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    # It exits at the end of its input; a failed one has exited already.
    with suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    process.wait()
    printed.close()


def answer(
    weights: ModelRef,
    memory: dict[str, Any],
    prompts: Sequence[Question],
    *,
    new_tokens: int,
    decoding: Decoding,
    device: str,
    work: Path,
    thoughts: Thoughts | None = None,
) -> answers.Answers:
    """Return vLLM's generations in the order of the prompts; see ``transformers.answer``.

    Args:
        weights: the model's weights.
        memory: the worker's memory, which keeps the server between stages.
        prompts: as text, or as messages for the chat template of the tokenizer.
        new_tokens: maximum number of new tokens.
        decoding: decoding settings.
        device: a torch device string.
        work: folder for a temporary copy of a base with merged adapters.
        thoughts: the markers of thought and answer, which are kept in the generations; None if there are none.

    Raises:
        ModelError: the interpreter is not set or not usable, or vLLM cannot load the model.
    """
    python = os.environ.get(VLLM_PYTHON)
    if not python:
        raise ModelError(
            "`evaluation.decoding.engine=vllm` needs the interpreter of an environment with vLLM; expected its path in "
            f"`cluster.vllm_python` or in {VLLM_PYTHON} (docs/generation.md)."
        )
    rank = None if weights.adapter is None else read(weights.adapter)[0].rank
    if rank is not None and rank > RANKS[-1]:
        weights, rank = weights.merging(), None
    wanted = _Base(
        key=(weights.base_key, tuple(map(str, (*filter(None, [weights.weights]), *weights.merged)))),
        rank=None if rank is None else next((known for known in RANKS if known >= rank), rank),
    )
    folder, dtype = _files(weights.base)
    server = served(memory)
    if not isinstance(server, VllmServer) or not server.base.covers(wanted):
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            if weights.merged or weights.weights:
                folder = _merged(weights, memory, device, Path(scratch))
            arguments = _arguments(folder, dtype, wanted.rank, device)
            server = serve(memory, lambda: VllmServer(python, wanted, arguments, environment=_environment(device)))
    assert isinstance(server, VllmServer)
    asked = _questions(_files(weights.base)[0], prompts, new_tokens, decoding, thoughts)
    rows = server.tokens(asked.prompts, new_tokens=new_tokens, ends=asked.rules.ends, folder=weights.adapter)
    return asked.answered(
        rows, {"path": answers.Path.VLLM.value, "why": "it was asked for", "arithmetic": dtype, "vllm": server.version}
    )


def _files(base: Path) -> tuple[Path, str]:
    """Return the folder of a base's weights and tokenizer, and the dtype of the weights."""
    if (base / REFERENCE).exists():
        folder, dtype = files_of_reference(base)
        return folder, dtype.value
    if (base / local.REFERENCE).exists():
        folder, dtype = local.files_of_local(base)
        return folder, dtype.value
    return base, "float32"


def _merged(weights: ModelRef, memory: dict[str, Any], device: str, folder: Path) -> Path:
    """Save a base with its merged adapters to a folder."""
    with loaded_model(replace(weights, adapter=None), memory, device) as loaded:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return folder


def _arguments(folder: Path, dtype: str, rank: int | None, device: str) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``."""
    arguments: dict[str, Any] = {"model": str(folder.resolve()), "dtype": dtype}
    if rank is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        arguments["gpu_memory_utilization"] = round(SHARE * min(free / total, 1 / gpu.workers()), 3)
    return arguments


def _environment(device: str) -> dict[str, str]:
    """Return environment variables that restrict a process to the GPU of this one."""
    name, _, number = device.partition(":")
    if name != "cuda" or not number:
        return dict(os.environ)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return dict(os.environ) | {"CUDA_VISIBLE_DEVICES": visible.split(",")[int(number)] if visible else number}


def _questions(
    folder: Path, prompts: Sequence[Question], new_tokens: int, decoding: Decoding, thoughts: Thoughts | None
) -> answers.Questions:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        ends = AutoConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return answers.Questions.of(
        prompts, tokenizer, own_ends=ends, new_tokens=new_tokens, decoding=decoding, thoughts=thoughts
    )
