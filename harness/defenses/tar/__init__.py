"""TAR: alignment against a simulated fine-tuning adversary."""

from harness.defenses.tar.method import Tar

__all__ = ["Tar"]
