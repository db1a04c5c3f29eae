"""Configuration: from Hydra's files and overrides to typed settings."""
