"""Fusions of several alignments of one base into one adapter."""
