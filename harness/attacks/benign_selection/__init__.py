"""Benign selection: fine-tuning on those of the user's benign examples that break alignment most."""
