"""Methods at inference: what may stand between a model and its answers (``harness.protocols.serving``)."""
