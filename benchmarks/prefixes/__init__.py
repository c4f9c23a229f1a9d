"""Simulates a prefix cache of bounded bytes, to compare which states are kept and which are evicted first."""
