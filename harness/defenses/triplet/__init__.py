"""Triplet: alignment that gathers harmful states around their mean and keeps benign ones away from it."""

from harness.defenses.triplet.method import Triplet

__all__ = ["Triplet"]
