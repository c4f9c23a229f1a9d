"""The garbage collector of a process that serves."""

import gc


def keep_for_good() -> None:
    """Call it once all is set up: what lives now stays, and no collection looks through it again.

    A full collection of a fresh router takes 90 ms, in which no stream moves.
    """
    gc.collect()
    gc.freeze()
