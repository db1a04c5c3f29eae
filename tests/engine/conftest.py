from pathlib import Path

import pytest
from toys import ALLOW

from harness.engine.store import Store


@pytest.fixture(autouse=True)
def _prompt_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an accounting that is a dictionary."""
    monkeypatch.setattr("harness.slurm.states._ACCOUNTING_PAUSES_SECONDS", (0.0,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a store with spaces"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root, allow=ALLOW)
