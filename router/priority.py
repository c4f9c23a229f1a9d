"""Priorities of requests: a lower number goes first, and preempts higher ones at the workers.

The default is 0. A batch's lines come after every priority that a client may ask for.
"""

SOONEST, LATEST = -100, 100
BATCH = 1000
