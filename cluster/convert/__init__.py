"""Copies checkpoints into another format or layout."""
