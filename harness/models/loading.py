"""Loading of models for stages, with the base model cached in memory.

The base model stays in the process's memory between stages. Adapters are merged or attached within a context and
removed on exit, so that the next stage gets exactly the base that was loaded.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.errors import ModelError
from harness.models import adapter, local, stored_weights
from harness.models.hub import REFERENCE, open_reference
from harness.models.saved import Opened

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.merge import Merged

_log = logging.getLogger(__name__)
_SLOT = "modeling.base"
_SERVER = "generation.server"
_NOTICEABLE = 0.01


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """Reference to the parts of a model.

    Attributes:
        base_key: key of the stage that wrote the base.
        base: that stage's artifact: a saved model, or a reference to a Hub model or a local folder.
        merged: adapters to merge into the base, in this order.
        adapter: adapter to attach, trainable.
        weights: trained weights that replace those of the base, before anything is merged or attached.
        routed: routed experts that take the place of the feed-forward blocks, see ``harness.models.routed``.
    """

    base_key: str
    base: Path
    merged: tuple[Path, ...] = ()
    adapter: Path | None = None
    weights: Path | None = None
    routed: Path | None = None

    def merging(self) -> ModelRef:
        """Return the same model with its adapter merged, if it has one."""
        return self if self.adapter is None else replace(self, merged=(*self.merged, self.adapter), adapter=None)


class LoadedModel(NamedTuple):
    """A model within the context of ``loaded_model``, which removes any adapter attached to it.

    ``lost`` is the relative rounding error of each merged adapter, see ``merge.Merged``.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    lost: tuple[float, ...] = ()


class _CachedBase(NamedTuple):
    key: tuple[str, Path | None]
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
    _free_memory()
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
    """Yield a model in eval mode with a frozen base.

    ``memory`` caches one base, with trained weights if it has some: loading another frees it first. After an exception
    in the context the base is dropped, because hooks may be left on it. Merging keeps one copy of the changed matrices
    until the context ends.

    Args:
        weights: the parts of the model.
        memory: cache of the base, shared by the stages of a process.
        device: a torch device string.
        for_good: the caller changes the base irreversibly, so it is not returned to the cache.

    Raises:
        ModelError: the base or an adapter cannot be read, or they do not fit each other or this machine.
    """
    from harness.models import routed
    from harness.models.merge import merge, restore

    stop_serving(memory)
    cached: _CachedBase | None = memory.pop(_SLOT, None)
    key = (weights.base_key, weights.weights)
    if cached is None or (cached.key, cached.device) != (key, device):
        del cached
        _free_memory()
        cached = _CachedBase(key, device, _open_trained(weights, device))
    base, tokenizer = cached.opened
    merged: list[Merged] = []
    for folder in weights.merged:
        merged.append(merge(base, folder))
        if merged[-1].lost > _NOTICEABLE:
            _log.warning(
                "merging %s into a %s base lost %.0f %% of the adapter to rounding; use a float32 base to avoid this",
                folder,
                base.dtype,
                100 * merged[-1].lost,
            )
    if weights.routed is not None:
        routed.install(base, weights.routed)
    model = base if weights.adapter is None else adapter.load(base, weights.adapter)
    yield LoadedModel(model, tokenizer, lost=tuple(done.lost for done in merged))
    if for_good:
        return
    adapter.detach(base)
    if weights.routed is not None:
        routed.remove(base)
    for done in reversed(merged):
        restore(base, done)
    memory[_SLOT] = cached._replace(opened=Opened(base.eval(), tokenizer))


def weights_of(weights: ModelRef) -> dict[str, Tensor]:
    """Return the weights of a model without an adapter by parameter name, on the CPU, in its number format.

    Raises:
        ModelError: the base or an adapter cannot be read, or they do not fit each other or this machine.
    """
    from harness.models.merge import merge

    model = _open_trained(weights, "cpu").model
    for folder in weights.merged:
        merge(model, folder)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _open_trained(weights: ModelRef, device: str) -> Opened:
    opened = _open(weights.base, device)
    if weights.weights is not None:
        stored_weights.apply(opened.model, weights.weights)
    return opened


def _open(folder: Path, device: str) -> Opened:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if (folder / REFERENCE).exists():
        model, tokenizer = open_reference(folder, device)
    elif (folder / local.REFERENCE).exists():
        model, tokenizer = local.open_local(folder, device)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            ).to(device)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"{folder} contains no model that can be loaded ({error}); expected the output of `save_pretrained`, "
                "with weights as safetensors. Remove the folder so that the stage that writes it runs again."
            ) from error
    _normalize(model, tokenizer)
    return Opened(model, tokenizer)


def _normalize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Freeze the base, and make padding token, cache and generation config independent of the model's source.

    A missing padding token is set to the unknown or the end token instead of a new one: padding is masked everywhere,
    so the choice does not affect results, and the embeddings keep their size.
    """
    from transformers import GenerationConfig

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model.requires_grad_(False).eval()
    model.config.use_cache = False
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
