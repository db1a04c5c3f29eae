"""Hydra's launcher and sweeper plugins of the harness; Hydra discovers them in the package ``hydra_plugins``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

from harness.config.composed import Files
from harness.config.expansion import expand
from harness.errors import ConfigError, Problem, StagesFailed


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
    """Runs a batch of cells with the harness, which plans their union and runs each distinct stage once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the config loader and the sweep's configuration, from which cells are composed."""
        self._loader = hydra_context.config_loader
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; the return value of a job is the objective of its cell, and raises if the cell failed."""
        from harness.sweep.run import launch

        return launch(self._loader, self._config, job_overrides)


class HarnessSweeper(Sweeper):
    """Like Hydra's basic sweeper, but does not compose each job first: the harness composes and checks all cells."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Keep the sweep of the configuration: dotted names or groups, each with a sweep in Hydra's grammar."""
        self._params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Instantiate the launcher."""
        from hydra.core.plugins import Plugins

        hydra = list(config.hydra.overrides.hydra)
        self._config = config
        self._options = Files(hydra_context.config_loader, config.hydra.job.config_name, hydra).options
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def _check_lists(self) -> None:
        """Reject a list of values for what is no list: in YAML that is one value, and not a sweep.

        Raises:
            ConfigError: with all of them.
        """
        problems = [
            Problem(
                f"hydra.sweeper.params.{key}",
                f"a list is one value; expected the values of a sweep as one text, as in `{key}: "
                f"{','.join(map(str, value))}`",
            )
            for key, value in self._params.items()
            if isinstance(value, ListConfig | list)
            and (self._options(key) or not isinstance(OmegaConf.select(self._config, key), ListConfig))
        ]
        if problems:
            raise ConfigError(problems)

    def sweep(self, arguments: list[str]) -> list[float | None]:
        """Expand the sweep, with precedence of the command line over the configuration; launch all cells at once."""
        self._check_lists()
        params = [f"{key}={value}" for key, value in self._params.items()]
        batch = expand(arguments, self._options, params)
        jobs = self._launcher.launch(batch, initial_job_idx=0)
        # Reading the return value of a failed job would log the error again; each failed stage was already reported.
        if failed := [job for job in jobs if job.status is JobStatus.FAILED]:
            raise StagesFailed(f"{len(failed)} of {len(jobs)} cells are not complete")
        return [job.return_value for job in jobs]
