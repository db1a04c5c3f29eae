"""RepNoise: align while turning the representation of harmful text into noise."""

from harness.defenses.repnoise.method import RepNoise

__all__ = ["RepNoise"]
