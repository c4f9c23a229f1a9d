"""Kept snapshots: where a sequence may begin other than at zero."""
