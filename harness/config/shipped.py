"""The shipped configuration."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""Its folder: next to the package in a checkout, inside it in a wheel."""
