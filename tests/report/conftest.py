"""A sweep with everything on its page, and a browser to look at it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fabricated import Fabricator

from harness.report import write
from harness.report.stats.results import Results, load_results


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Fabricator:
    """A finished sweep: three defenses, Booster over two lambdas and two alphas, two ratios, three seeds."""
    maker = Fabricator(tmp_path_factory.mktemp("drawn") / "store", prompts=60, answers=40)
    maker.grid([1.0, 5.0], [0.1, 0.5], [0.0, 0.2], 3)
    return maker


@pytest.fixture(scope="session")
def findings(drawn: Fabricator) -> Results:
    return load_results(drawn.store, drawn.store.read_sweep("drawn-1"))


@pytest.fixture(scope="session")
def written(drawn: Fabricator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `harness report --out` wrote, with answers."""
    out = tmp_path_factory.mktemp("written") / "report"
    write(drawn.store.root, ["drawn"], out, with_samples=True)
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium that resolves no name."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get("HARNESS_CI") == "1":
            pytest.fail("chromium and chromedriver are missing; .ci/run installs them")
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt install chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1300,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_script_timeout(120)
    yield opened
    opened.quit()
