"""Hand-offs of snapshots between workers, as one worker takes part in them. Pure: no sockets, no clock, no tensors.

Each method, here and of the parts, takes one event and returns the actions that follow from it, in order; the leader
performs them.
"""

from collections.abc import Iterable

from wire.protocol import WorkerInfo
from workers.leader.actions import Action, Failed
from workers.leader.arrivals import Arrivals
from workers.leader.endings import Endings
from workers.leader.giving import Giving
from workers.leader.loans import Loans
from workers.leader.moving_away import MovingAway
from workers.leader.pulls import Pulls
from workers.leader.taking import Taking
from workers.schedule.scheduler import Scheduler


class HandOffs:
    """All hand-offs of one worker. timeout_s: how long a pull waits for a request that has not arrived.

    giving: what others pull from it. taking: what it pulls from others. moving: answers that it gives up as it ends.
    endings: ends a request in any of them.
    """

    def __init__(self, scheduler: Scheduler, info: WorkerInfo, timeout_s: float) -> None:
        self._scheduler = scheduler
        self._timeout_s = timeout_s
        pulls = Pulls()
        self._loans = Loans(scheduler, info, pulls)
        self.endings = Endings(scheduler, pulls, Arrivals(len(info.ranks)))
        self.giving = Giving(scheduler, info, self.endings, self._loans)
        self.taking = Taking(scheduler, info, self.endings, self._loans)
        self.moving = MovingAway(scheduler, self.endings)

    def __contains__(self, request_id: str) -> bool:
        """Whether a request waits here for its peer to be connected."""
        return request_id in self.endings.joining

    @property
    def idle(self) -> bool:
        """Whether no request waits for its peer to be connected."""
        return not self.endings.joining

    def overdue(self, now: float) -> list[Action]:
        """End what has waited too long: snapshots that nobody pulls, and pulls whose request never came."""
        actions: list[Action] = []
        for output in self._scheduler.overdue(now):
            actions += [Failed("timeout"), *self.endings.not_handed_on(output)]
        for request_id in self.endings.pulls.asked_before(now - self._timeout_s):
            if request_id not in self._scheduler.sequences:
                actions += self.endings.refuse(request_id, "its prefill worker never got the request", told=False)
        return actions

    def link_lost(
        self, worker_id: str, request_ids: Iterable[str], reason: str, now: float, *, leaving: bool
    ) -> list[Action]:
        """A rank's connection to a peer's rank broke, with these requests' snapshots on it.

        leaving: the snapshots were on their way to the peer, not from it. A request may have one of each.
        """
        actions: list[Action] = []
        for request_id in request_ids:
            if leaving:
                self._loans.end(request_id)
            seq = self._scheduler.sequences.get(request_id)
            if seq is not None and (seq.peer if leaving else seq.source and seq.source.peer) == worker_id:
                actions += self.endings.fail(
                    request_id, f"the transfer link to {worker_id} broke: {reason}", "link", now
                )
        return actions

    def fetch_failed(self, request_id: str, peer: str) -> list[Action]:
        """A kept snapshot in host memory or a file is damaged: the request that waits for it is computed instead.

        peer: the worker it was to be sent to; "" for none.
        """
        if peer:
            return self._loans.damaged(request_id)
        self.endings.arrivals.drop(request_id)
        return self._loans.refuse(self._scheduler.not_coming(request_id, damaged=True))

    def write_failed(self, file: str) -> list[Action]:
        """A kept snapshot could not be written to its file."""
        self._scheduler.cache.write_failed(file)
        return self._loans.lost()
