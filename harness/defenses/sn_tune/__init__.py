"""SN-Tune: alignment of the neurons that matter for every harmful query, and of nothing else."""

from harness.defenses.sn_tune.method import SNTune

__all__ = ["SNTune"]
