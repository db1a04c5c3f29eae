"""Defenses, one module or package per method."""
