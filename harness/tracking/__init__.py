"""Trackers: where the metrics of a training stage are logged."""
