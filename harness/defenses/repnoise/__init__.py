"""RepNoise: alignment that pushes the representations of harmful text towards noise."""

from harness.defenses.repnoise.method import RepNoise

__all__ = ["RepNoise"]
