"""Decides what a worker computes next: plain decisions over plain data."""
