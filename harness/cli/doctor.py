"""Checks of this machine: one finding per line, nothing is changed."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from harness.config.build import cells_of
from harness.config.compose import compose
from harness.corpora.catalogue import DATA_VARIABLE, catalogue, data_folder
from harness.corpora.sources import Source
from harness.engine.layout import StoreLayout
from harness.engine.prefetch import fetchables
from harness.errors import HarnessError, Problem, TrackingError
from harness.local.settings import Local
from harness.wandb_sync.server import login

HUB_TIMEOUT_SECONDS = 3.0


class Finding(NamedTuple):
    """One line of the doctor: what was checked, whether it is present, and details."""

    subject: str
    present: bool
    detail: str


def examine(store: Path, *, network: bool = False) -> Iterator[Finding]:
    """Check Python, torch, the Hub, the data, the store, Slurm and W&B.

    Args:
        store: the folder, which need not exist.
        network: whether to contact the Hub as well; nothing else uses the network.
    """
    yield Finding("python", (3, 11) <= sys.version_info[:2] <= (3, 13), sys.version.split()[0])
    for name in ("torch", "transformers", "peft", "hydra-core", "gguf"):
        yield _package(name)
    yield _device()
    yield from _workers()
    yield from _hub(network=network)
    yield from _data()
    yield _store(store)
    yield Finding("slurm", shutil.which("sbatch") is not None, shutil.which("sbatch") or "no sbatch on PATH")
    yield _wandb()


def fetch(experiment: str) -> Iterator[Finding]:
    """Download what an experiment needs, so that its runs can be offline.

    Raises:
        ConfigError: there is no such experiment.
        DataError: a source is not available.
        ModelError: the model is not available.
    """
    stages = [stage for cell in cells_of(compose([f"experiment={experiment}"])) for stage in cell.stages.values()]
    for part in fetchables(stages).values():
        yield Finding("fetched", True, str(part.fetch()))


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed")


def _device() -> Finding:
    if find_spec("torch") is None:
        return Finding("device", False, "torch is not installed: this machine can plan and submit, but not train")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("device", True, f"{len(names)} x {names[0]}")
    return Finding("device", True, f"cpu, {torch.get_num_threads()} threads; no GPU")


def _workers() -> Iterator[Finding]:
    if find_spec("torch") is None:
        return
    placement = Local().placement()
    where = f"one per GPU ({', '.join(placement.gpus)})" if placement.gpus else "no GPU; set `cluster.workers` for more"
    yield Finding("workers", True, f"{placement.workers} with cluster=local, {where}")


def _hub(*, network: bool) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        yield Finding("hub", False, "HF_HUB_OFFLINE is set: only cached models and data")
    elif not network:
        yield Finding("hub", True, f"{constants.ENDPOINT}, not contacted; use `harness doctor --network`")
    else:
        endpoint = urlsplit(constants.ENDPOINT)
        address = (endpoint.hostname or "", endpoint.port or 443)
        try:
            socket.create_connection(address, timeout=HUB_TIMEOUT_SECONDS).close()
            yield Finding("hub", True, f"{endpoint.hostname} answers")
        except OSError as error:
            yield Finding("hub", False, f"{endpoint.hostname} does not answer ({error})")
    present = get_token() is not None
    yield Finding("hub token", present, "present" if present else "none; only needed for gated models")


def _data() -> Iterator[Finding]:
    folder = data_folder()
    detail = f"{DATA_VARIABLE}={folder}" if folder else f"{DATA_VARIABLE} is not set; sources come from the Hub"
    yield Finding("data folder", folder is not None and folder.is_dir(), detail)
    for name in catalogue():
        try:
            source = Source.parse(name)
            problems, here = source.preflight(), source.at_hand()
        except HarnessError as error:
            problems, here = [Problem("", str(error))], False
        known = "on this machine" if here else f"not on this machine; on the Hub as {source.repo}"
        yield Finding(f"  {name}", here and not problems, str(problems[0]) if problems else known)


def _store(path: Path) -> Finding:
    root = path.absolute()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Finding("store", False, f"{existing} is not a writable folder")
    count = sum(1 for _ in StoreLayout(root).manifests())
    return Finding("store", True, f"{root}, {count} artifacts")


def _wandb() -> Finding:
    if find_spec("wandb") is None:
        return Finding("wandb", False, "not installed; curves and tables stay in the store")
    from harness.wandb_sync.client import address

    # The address that the library would use: its default differs between versions.
    try:
        server = address()
        login(server)
    except TrackingError as error:
        return Finding("wandb", False, f"{metadata.version('wandb')}. {error}")
    return Finding("wandb", True, f"{metadata.version('wandb')}, a key for {server} is present")
