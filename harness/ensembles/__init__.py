"""Ensemble methods: how one answer is chosen among those of several models."""
