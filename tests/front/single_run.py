"""The same words twice: as a single run, which Hydra composes, and as a sweep, which the harness does."""

from contextlib import contextmanager

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from harness.config.build import cells_of
from harness.config.compose import NAME, Composer, composition_of
from harness.config.expansion import expand
from harness.config.hydra_errors import wrap_hydra_errors
from harness.config.shipped import CONF


class Both:
    """Both ways, on one loader, as Hydra has one for all jobs of a sweep."""

    def __init__(self, loader):
        master = loader.load_configuration(NAME, [], run_mode=RunMode.MULTIRUN)
        self._loader, self._composer = loader, Composer(loader, master)

    def single(self, overrides):
        """Return the cell of a single run."""
        with wrap_hydra_errors():
            config = self._loader.load_configuration(NAME, list(overrides), run_mode=RunMode.RUN)
        HydraConfig.instance().set_config(config)
        (cell,) = cells_of([composition_of(config)])
        return cell

    def swept(self, overrides):
        """Return the compositions of a sweep."""
        return [self._composer.compose(cell) for cell in expand(overrides, self._composer.options)]


@contextmanager
def both():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="harness"):
        yield Both(GlobalHydra.instance().config_loader())
    HydraConfig.instance().cfg = None
