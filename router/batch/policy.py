"""When a batch's lines may start. Pure.

At a worker, live requests take the places of batch lines by themselves. This policy avoids starting lines that would
only be preempted, which would compute their prompts twice.
"""

from collections.abc import Iterable

from router.relay.fleet import WorkerState
from wire.protocol import Role

# Lines leave one in this many of a worker's slots and pages free for live requests to come.
_SPARE = 8


def room(
    workers: Iterable[WorkerState], running: int, starting: int, most: int, *, split: bool, waiting: int = 0
) -> int:
    """How many more lines this router may start beside `running`, of at most `most`.

    starting: running lines that no worker's figures can contain yet. waiting: live requests that wait in this router
    for their turn; lines start only where there are none. Both pools must have places to spare; a worker at which any
    request waits has none.
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
