"""What the tests of the front share."""

import pytest

from harness.cli.main import main


@pytest.fixture(autouse=True)
def _prompt_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an accounting that is a dictionary."""
    monkeypatch.setattr("harness.slurm.states._ACCOUNTING_PAUSES_SECONDS", (0.0,))


@pytest.fixture
def run(capsys):
    """Run a command in this process; return its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        code = left.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run
