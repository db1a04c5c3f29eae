"""SaLoRA: fine-tuning whose change of a layer cannot reach the outputs that safe answers use."""

from harness.defenses.salora.method import SaLoRA

__all__ = ["SaLoRA"]
