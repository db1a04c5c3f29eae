"""A W&B-compatible server in a process of its own, and a pass-through before it."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_sweep import store_of
from passthrough import Passthrough

from harness.engine.store import Store

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / ".venv-wandb" / "bin" / "openwandb"
KEY = "local" + 40 * "0"


@dataclass
class Server:
    """The server; it can be killed and started again on its data."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [COMMAND, "serve", "--host", "127.0.0.1", "-p", str(self.port), "--base-url", self.address]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment | {"OPENWANDB_DATA_DIR": str(self.folder)}, stdout=log, stderr=log
            )
        for _ in range(600):
            try:
                self.rest("projects")
            except OSError:
                time.sleep(0.1)
            else:
                return
        pytest.fail(f"the server did not start: {(self.folder / 'log.txt').read_text()[-2000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def rest(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}/api/v2/{path}", timeout=30) as response:
            return json.load(response)

    def runs(self, project: str) -> dict[str, dict[str, Any]]:
        """Everything that a project shows, by run: to be compared."""
        runs = self.rest(f"projects/default/{project}/runs?limit=1000")["runs"]
        return {run["run_id"]: run | {"curves": self.curves(run["run_id"])} for run in runs}

    def curves(self, run: str) -> dict[str, list[tuple[int, float]]]:
        found = self.rest(f"runs/{run}/metrics")["metrics_by_key"]
        return {name: [(point["step"], point["value"]) for point in points] for name, points in found.items()}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not COMMAND.exists():
        missing = f"{COMMAND.relative_to(ROOT)} is missing; `make wandb-server` installs it"
        pytest.fail(missing) if os.environ.get("HARNESS_CI") else pytest.skip(missing)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = Server(tmp_path_factory.mktemp("wandb-server"), port)
    started.start()
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own W&B: no login, no settings; nobody listens at the address."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def place(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passthrough]:
    """The address that the harness is told to use."""
    opened = Passthrough(server.address)
    monkeypatch.setenv("WANDB_BASE_URL", opened.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield opened
    opened.close()


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A finished sweep of ten cells."""
    return store_of(tmp_path / "store", salt=request.node.nodeid)


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A finished sweep of four cells."""
    return store_of(tmp_path / "store", salt=request.node.nodeid, lambs=(5.0,), alphas=(0.1,))
