"""A single run as Hydra composes it: what a sweep over one cell is compared with."""

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from harness.compose import CONF, NAME, composition_of
from harness.config import cells_of
from harness.errors import ConfigError
from harness.refusal import REFUSALS, told


def single_run(overrides):
    """Return the cell of a single run.

    Raises:
        ConfigError: Hydra or the harness refuses it.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="harness"):
        loader = GlobalHydra.instance().config_loader()
        try:
            config = loader.load_configuration(NAME, list(overrides), run_mode=RunMode.RUN)
        except (*REFUSALS, ValueError) as error:
            raise ConfigError([told(error)]) from error
        HydraConfig.instance().set_config(config)
        (cell,) = cells_of([composition_of(config)])
    return cell
