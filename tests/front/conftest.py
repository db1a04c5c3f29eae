"""What the tests of the front share."""

import pytest


@pytest.fixture(autouse=True)
def _prompt_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an accounting that is a dictionary."""
    monkeypatch.setattr("harness.engine.states._LAGS_SECONDS", (0.0,))
