"""The prefix cache: kept snapshots from which sequences may continue."""
