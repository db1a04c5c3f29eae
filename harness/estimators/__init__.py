"""Estimators of gradients from forward passes, one module per method."""
