"""Batches: files of requests that are answered with capacity that live requests leave free."""
