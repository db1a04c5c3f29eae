"""Output folder of third-party Hydra sweepers (``hydra.sweep.dir``)."""

import os
from tempfile import gettempdir

from omegaconf import OmegaConf

RESOLVER = "sweep_folder"


def register() -> None:
    """Register the resolver that ``conf/config.yaml`` uses."""
    OmegaConf.register_new_resolver(RESOLVER, sweep_folder, replace=True)


def sweep_folder(store: str, dry_run: object, date: str) -> str:
    """Return the folder of a sweep: in the store, or a temporary one for a dry run, which writes nothing to the store.

    Hydra's basic sweeper creates the folder before it calls the harness.
    """
    return os.path.join(gettempdir(), f"harness-dry-run-hydra-{date}") if dry_run is True else f"{store}/hydra/{date}"
