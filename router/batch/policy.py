"""When a batch's lines may start. Pure.

At a worker, live requests take the places of batch lines by themselves. This policy avoids starting lines that would
only be preempted, which would compute their prompts twice.
"""

from collections.abc import Iterable

from router.relay.fleet import WorkerState
from wire.protocol import Role

# Lines leave one of this many of a worker's slots and pages free for future live requests.
_SPARE = 8


def room(
    workers: Iterable[WorkerState], running: int, starting: int, most: int, *, split: bool, waiting: int = 0
) -> int:
    """How many lines this router may start beside the `running` ones, at most `most` in all.

    starting: running lines that no worker's figures include yet. waiting: live requests that wait in this router for
    their turn; lines start only if there are none. Both pools must have spare places; a worker at which any request
    waits has none.
    """
    if waiting:
        return 0
    free: dict[Role, int] = {"prefill": 0, "decode": 0}
    for worker in workers:
        free[worker.info.role] += _spare(worker)
    pools = (free["prefill"], free["decode"]) if split else (free["decode"],)
    return max(0, min(most - running, min(pools) - starting))


def _spare(worker: WorkerState) -> int:
    info, load = worker.info, worker.load
    if load.queued or load.free_pages < info.pages // _SPARE:
        return 0
    return max(0, load.free_slots - worker.unseen - info.slots // _SPARE)
