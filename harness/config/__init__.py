"""From Hydra's configuration to typed settings."""
