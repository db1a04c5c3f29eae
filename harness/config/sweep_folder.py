"""Sweep folder: where a Hydra sweeper that is not ours puts what it writes itself (``hydra.sweep.dir``)."""

import os
from tempfile import gettempdir

from omegaconf import OmegaConf

RESOLVER = "sweep_folder"


def register() -> None:
    """Make the resolver known that ``conf/config.yaml`` uses."""
    OmegaConf.register_new_resolver(RESOLVER, sweep_folder, replace=True)


def sweep_folder(store: str, dry_run: object, date: str) -> str:
    """Return the folder of a sweep: in the store, or, as a dry run leaves nothing there, a temporary one.

    Hydra's basic sweeper makes it before anything of the harness is asked.
    """
    return os.path.join(gettempdir(), f"harness-dry-run-hydra-{date}") if dry_run is True else f"{store}/hydra/{date}"
