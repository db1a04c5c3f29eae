"""A harness of one's own, with or without the base model, and a finished sweep to look at."""

import os
import shutil
from pathlib import Path

import pytest
from composed import compose
from filelock import FileLock
from product import QUICK, Harness

from harness.config.build import cells_of
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the base model of `QUICK` alone: its training takes longer than the rest of a cell.

    All processes of the tests share it.
    """
    own = tmp_path_factory.getbasetemp()
    store = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "base" / "store"
    store.parent.mkdir(exist_ok=True)
    with FileLock(store.parent / "lock"):
        if not store.exists():
            (cell,) = cells_of(compose(QUICK))
            making = store.with_name("making")
            assert LocalExecutor().run(Plan.of([cell.stages["base"]]), Store(making)).complete
            making.rename(store)
    return store


@pytest.fixture
def with_base(base: Path, tmp_path: Path) -> Harness:
    """A harness whose store has the base model."""
    shutil.copytree(base, tmp_path / "store")
    return Harness(tmp_path)


@pytest.fixture(scope="session")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A finished sweep of four cells, to be read only."""
    done = Harness(tmp_path_factory.mktemp("a finished sweep"))
    shutil.copytree(base, done.store)
    run = done("-m", "defense=sft,booster", "attack_ratio=p00,p20", *QUICK)
    assert run.returncode == 0, run.stderr
    return done
