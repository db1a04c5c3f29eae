"""BEAT: prompts that make the model answer a request that it refuses alone are rejected."""

from harness.serving.beat.method import Beat, Signatures

__all__ = ["Beat", "Signatures"]
