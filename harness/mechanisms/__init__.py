"""Mechanisms that several defenses share."""
