"""Generating answers: decoding settings and engines."""
