"""Mechanisms shared by several defenses."""
