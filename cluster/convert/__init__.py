"""Copies of checkpoints in another format or layout."""
