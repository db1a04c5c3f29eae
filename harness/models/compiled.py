"""Decoder layers as compiled code.

Layers are compiled one by one instead of the model as a whole: all layers of a model share one piece of code, so it is
compiled once for each shape, and what is between layers (hooks, checkpointing, sharding) stays as it is. Compiled code
does not see hooks that come and go. A layer with hooks inside of it therefore runs eagerly, with those of its children
compiled that have none inside of them.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from harness.models.decoder import layers

log = logging.getLogger(__name__)

Backend = str | Callable[..., Any]
MOST_VERSIONS = 128
"""Versions of a layer's code that are kept: by shape, by whether its input and its adapter have gradients, and by
whether there are gradients at all."""


@cache
def compiler_problem(device_type: str) -> str:
    """Return why code cannot be compiled for a kind of device, in one line; empty if it can. Tried once a process."""
    try:
        torch.compile(_probe)(torch.ones(8, device=device_type))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.info("layers are not compiled: %s", first)
        return first
    return ""


def use_cache(folder: Path) -> None:
    """Let the compiler keep its code in this user's part of a folder; without one that is theirs, where it does anyway.

    What is in it is executed, so it belongs to one user and nobody else can write there.
    """
    own = folder / str(os.getuid())
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = own.lstat()
    except OSError as error:
        log.info("the compiler's cache is not in the store: %s", error)
        return
    if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own))


def _probe(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor * 2 + 1).relu().sum()


@contextmanager
def compiled_layers(model: Module, backend: Backend, rows: Collection[int]) -> Iterator[None]:
    """Run a decoder's layers as compiled code while the context lasts.

    Args:
        model: a causal language model.
        backend: of ``torch.compile``.
        rows: the numbers of rows that are compiled for; batches of others go through the layers as they are.

    Raises:
        ModelError: the model has no list of layers, or several.
    """
    found = layers(model)
    with ExitStack() as stack:
        stack.enter_context(
            torch._dynamo.config.patch(recompile_limit=MOST_VERSIONS, accumulated_recompile_limit=8 * MOST_VERSIONS)
        )
        for layer in found:
            stack.enter_context(forward_of(layer, CompiledLayer(layer, backend, frozenset(rows))))
        yield


class CompiledLayer:
    """The forward function of a decoder layer, compiled as a whole or in parts.

    Args:
        layer: the layer; its own hooks run outside of this function.
        backend: of ``torch.compile``.
        rows: as for ``compiled_layers``.
    """

    def __init__(self, layer: Module, backend: Backend, rows: Collection[int]) -> None:
        """Prepare to compile; nothing is compiled before the first call."""
        self._plain = layer.forward
        self._rows = rows
        self._inside = hooks_inside(layer)
        self._whole = _compiled(layer, backend)
        self._parts = [
            (child, hooks_inside(child), _compiled(child, backend))
            for child in layer.children()
            if any(True for _ in child.parameters())
        ]

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the layer."""
        hidden = args[0] if args else named["hidden_states"]
        if len(hidden) not in self._rows:
            return self._plain(*args, **named)
        if not any(self._inside):
            return self._whole(*args, **named)
        with ExitStack() as stack:
            for child, inside, forward in self._parts:
                if not any(inside):
                    stack.enter_context(forward_of(child, forward))
            return self._plain(*args, **named)


def _compiled(module: Module, backend: Backend) -> Callable[..., Any]:
    return torch.compile(module.forward, backend=backend, dynamic=False)


def hooks_inside(module: Module) -> list[Mapping[int, Any]]:
    """Return what holds the hooks of the modules inside of one, each empty as long as there are none."""
    inside = [part for part in module.modules() if part is not module]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [getattr(part, kind) for part in inside for kind in kinds]


@contextmanager
def forward_of(module: Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward function while the context lasts."""
    # An attribute of the instance hides the method of its class; some libraries set one themselves.
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
