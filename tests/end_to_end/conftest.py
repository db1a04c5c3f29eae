"""A harness of one's own, with or without the base model, and a finished sweep to look at."""

import shutil
from pathlib import Path

import pytest
from product import QUICK, Harness, shared, shared_base


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the base model of `QUICK` alone."""
    return shared_base(tmp_path_factory)


@pytest.fixture
def with_base(base: Path, tmp_path: Path) -> Harness:
    """A harness whose store has the base model."""
    shutil.copytree(base, tmp_path / "store")
    return Harness(tmp_path)


@pytest.fixture(scope="session")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A finished sweep of four cells, in which nothing is to be trained."""

    def make(folder: Path) -> None:
        done = Harness(folder)
        shutil.copytree(base, done.store)
        run = done("-m", "defense=sft,booster", "attack_ratio=p00,p20", *QUICK)
        assert run.returncode == 0, run.stderr

    own = Harness(tmp_path_factory.mktemp("a finished sweep"))
    shutil.copytree(shared(tmp_path_factory, "finished", make) / "store", own.store)
    return own
