"""What Hydra must find in this package: the launcher and the sweeper of the harness. Both only hand over to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from harness.config.expansion import expanded, options_of
from harness.errors import StagesFailed


@dataclass
class HarnessLauncherConf:
    """Selected by ``hydra/launcher: harness``."""

    _target_: str = "hydra_plugins.harness_launcher.HarnessLauncher"


@dataclass
class HarnessSweeperConf:
    """Selected by ``hydra/sweeper: harness``."""

    _target_: str = "hydra_plugins.harness_launcher.HarnessSweeper"
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/launcher", name="harness", node=HarnessLauncherConf, provider="harness")
ConfigStore.instance().store(group="hydra/sweeper", name="harness", node=HarnessSweeperConf, provider="harness")


class HarnessLauncher(Launcher):
    """Gives a batch of cells to the harness, which plans their union and runs every stage once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what is needed to compose the cells."""
        self._loader = hydra_context.config_loader
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; a job's return value is its objective, or raises if the cell failed."""
        from harness.sweep.run import launch

        return launch(self._loader, self._config, job_overrides)


class HarnessSweeper(Sweeper):
    """Hydra's basic sweeper without its composition of every job: the harness checks all cells at once, faster."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Take the sweep of the configuration: dotted names or groups, each with a sweep in Hydra's grammar."""
        self._params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        from hydra.core.plugins import Plugins

        hydra = list(config.hydra.overrides.hydra)
        self._options = options_of(hydra_context.config_loader, config.hydra.job.config_name, hydra)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[float | None]:
        """Expand the arguments, the command line over the configuration, and launch all cells as one batch."""
        lines = [f"{key}={value}" for key, value in self._params.items()]
        batch = expanded(arguments, self._options, lines)
        jobs = self._launcher.launch(batch, initial_job_idx=0)
        # Reading the value of a failed job announces it once more; the harness has told of each failed stage.
        if failed := [job for job in jobs if job.status is JobStatus.FAILED]:
            raise StagesFailed(f"{len(failed)} of {len(jobs)} cells are not complete")
        return [job.return_value for job in jobs]
