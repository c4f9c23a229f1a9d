"""Checkpoints that lie elsewhere: on a hub, or in an object store. Fetched once a host, into a cache."""
