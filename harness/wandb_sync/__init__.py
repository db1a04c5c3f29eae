"""Weights & Biases: a replayable copy of the store."""
