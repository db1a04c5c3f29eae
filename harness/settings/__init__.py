"""Checks of settings and the messages about them."""
