"""TAR: align against an adversary that fine-tunes."""

from harness.defenses.tar.method import Tar

__all__ = ["Tar"]
