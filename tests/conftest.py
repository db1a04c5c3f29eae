"""What all tests share."""

import gc
import signal
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

import harness.defenses

# Deterministic, and without a stopwatch: the machine may be busy.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

# What is imported and collected is no garbage: looking for some among it meanwhile takes as long as a fifth of it.
gc.disable()

# A job in the background (`make test &`, some CI runners) inherits SIGINT as ignored, and hands it on to its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

TOGETHER = (
    ("tests/slurm/",),
    (
        "tests/contracts/test_methods_on_two_processes",
        "tests/contracts/test_passes",
        "tests/contracts/test_train_methods",
    ),
)
"""Files that run in one process: the one Slurm of this machine, and what each method computes with whole batches."""

FIRST = (
    *TOGETHER[0],
    "tests/tracking/test_server",
    "tests/end_to_end/test_s",
    *TOGETHER[1],
    "tests/end_to_end",
    "tests/training",
    "tests/contracts",
)
"""Where files take minutes, longest first: then the processes end at about the same time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for methods of other packages."""
    about = "a folder of modules with defenses, which the contract tests then find beside those of harness/defenses"
    parser.addoption("--methods", metavar="FOLDER", help=about)


def pytest_configure(config: pytest.Config) -> None:
    """Let the modules of the folder be found as if they were in ``harness/defenses``."""
    if folder := config.getoption("methods"):
        if not Path(folder).is_dir():
            raise pytest.UsageError(f"--methods: {folder} is no folder; expected one with modules of defenses")
        harness.defenses.__path__.append(str(Path(folder).resolve()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let long files go first."""
    places = {path: place for place, path in enumerate(FIRST)}
    items.sort(
        key=lambda item: next((place for path, place in places.items() if item.nodeid.startswith(path)), len(FIRST))
    )


def pytest_collection_finish() -> None:
    """Collect garbage from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> None:
    """Exempt what the modules before have loaded from garbage collection.

    Millions of objects belong to libraries and to the collected tests, and ``Trainer`` collects garbage at the start of
    every training: that took longer than a training of six steps.
    """
    gc.collect()
    gc.freeze()


class TogetherScheduling(LoadFileScheduling):
    """`--dist loadfile`, and files that share what they need count as one.

    The group marker of `--dist loadgroup` would do, but pytest-xdist 3.8 does not see it under pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((paths[0] for paths in TOGETHER if nodeid.startswith(paths)), super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Take the place of `--dist loadfile`; files go out in their order, not by how many tests they have."""
    config.option.loadscopereorder = False
    return TogetherScheduling(config, log) if config.getvalue("dist") == "loadfile" else None
