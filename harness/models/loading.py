"""Weights, lent to one stage at a time.

The base model stays in the process's memory between stages. Adapters are merged or attached for the length of a lease
and taken off afterwards, so that the next stage finds the base bit for bit as it was loaded.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.errors import ModelError
from harness.models import adapter
from harness.models.hub import REFERENCE, Opened, open_reference

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.merge import Merged

_log = logging.getLogger(__name__)
_SLOT = "modeling.base"
_SERVER = "generation.server"
_NOTICEABLE = 0.01


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """Which weights a stage works with.

    Attributes:
        base_key: key of the stage that wrote the base.
        base: its artifact: a saved model, or a reference to a model of the Hub.
        merged: adapters to add into the base's matrices, in this order.
        adapter: adapter to attach on top, trainable.
    """

    base_key: str
    base: Path
    merged: tuple[Path, ...] = ()
    adapter: Path | None = None


class LoadedModel(NamedTuple):
    """A model for the length of a lease. A fresh adapter may be attached to it; ``loaded_model`` takes it off.

    ``lost`` is what each merged adapter lost to the rounding of the base, as in ``merge.Merged``.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    lost: tuple[float, ...] = ()


class _Held(NamedTuple):
    key: str
    device: str
    opened: Opened


class Server(Protocol):
    """An inference server: a process that has loaded the base model itself."""

    def close(self) -> None:
        """Stop it and free its GPU memory."""
        ...


def served(memory: dict[str, Any]) -> Server | None:
    """Return the inference server of this worker, if one is running."""
    server: Server | None = memory.get(_SERVER)
    return server


def serve(memory: dict[str, Any], start: Callable[[], Server]) -> Server:
    """Start an inference server after freeing the base model or the server that this worker holds; keep it in memory.

    Args:
        memory: the worker's memory.
        start: starts the server.
    """
    stop_serving(memory)
    memory.pop(_SLOT, None)
    _free()
    memory[_SERVER] = server = start()
    return server


def stop_serving(memory: dict[str, Any]) -> None:
    """Stop this worker's inference server, if one is running, to free its GPU memory."""
    server: Server | None = memory.pop(_SERVER, None)
    if server is not None:
        server.close()


@contextmanager
def loaded_model(
    weights: ModelRef, memory: dict[str, Any], device: str = "cpu", *, for_good: bool = False
) -> Iterator[LoadedModel]:
    """Lend a model in evaluation mode, its base frozen.

    One base is kept in ``memory``: asking for another frees the first, and a stage that fails gives none back, since it
    may have left hooks behind. Merging costs one copy of the matrices it touches until the lease ends.

    Args:
        weights: which.
        memory: where the base is kept.
        device: a torch device string.
        for_good: the borrower changes the base so that it cannot be given back.

    Raises:
        ModelError: the base or an adapter cannot be read, or they do not fit each other or this machine.
    """
    from harness.models.merge import merge, restore

    stop_serving(memory)
    held: _Held | None = memory.pop(_SLOT, None)
    if held is None or (held.key, held.device) != (weights.base_key, device):
        del held
        _free()
        held = _Held(weights.base_key, device, _open(weights.base, device))
    base, tokenizer = held.opened
    merged: list[Merged] = []
    for folder in weights.merged:
        merged.append(merge(base, folder))
        if merged[-1].lost > _NOTICEABLE:
            _log.warning(
                "merging %s into a %s base lost %.0f %% of the adapter to rounding; a float32 base keeps it",
                folder,
                base.dtype,
                100 * merged[-1].lost,
            )
    model = base if weights.adapter is None else adapter.load(base, weights.adapter)
    yield LoadedModel(model, tokenizer, lost=tuple(done.lost for done in merged))
    if for_good:
        return
    adapter.detach(base)
    for done in reversed(merged):
        restore(base, done)
    memory[_SLOT] = held._replace(opened=Opened(base.eval(), tokenizer))


def _open(folder: Path, device: str) -> Opened:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if (folder / REFERENCE).exists():
        model, tokenizer = open_reference(folder, device)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            ).to(device)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"{folder} holds no model that can be loaded ({error}); expected what `save_pretrained` writes, with "
                "weights as safetensors. Remove the folder so that the stage that writes it runs again."
            ) from error
    _settle(model, tokenizer)
    return Opened(model, tokenizer)


def _settle(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Freeze the base and remove what would make two ways of loading differ.

    A missing padding token becomes the unknown or the end token rather than a new one: padding is masked everywhere, so
    its identity changes no number, and the embeddings, which adapters do not touch, keep their size.
    """
    from transformers import GenerationConfig

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model.requires_grad_(False).eval()
    model.config.use_cache = False
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
