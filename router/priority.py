"""Which request goes first: a lower number is sooner, and takes the places of higher ones at the workers.

0 where a client says nothing. A batch's lines come after whatever a client may ask for.
"""

SOONEST, LATEST = -100, 100
BATCH = 1000
