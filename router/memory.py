"""Settings of the garbage collector for a serving process."""

import gc


def keep_for_good() -> None:
    """Exclude all present objects from garbage collection. Call it when everything is set up.

    Otherwise a full collection of a fresh router takes 90 ms, in which no stream moves.
    """
    gc.collect()
    gc.freeze()
    # By default every 700 new objects, which are a few requests: a sixteenth of what the router computes.
    gc.set_threshold(10_000)
