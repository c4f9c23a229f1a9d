"""Fetches checkpoints from a hub or an object store, once per host, into a cache."""
