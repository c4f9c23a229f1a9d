"""Tracks copies of kept snapshots for peers until every rank has sent its part. Pure."""

from collections import defaultdict
from collections.abc import Iterable

from wire.protocol import Header, Pull, PullRefused, WorkerInfo
from workers.leader.actions import Action, ToPuller
from workers.leader.pulls import Puller, Pulls
from workers.schedule.keeping import PullError
from workers.schedule.lending import Lent
from workers.schedule.scheduler import Scheduler


class Loans:
    """The leader's part of lending: it answers peers and counts ranks; the scheduler's `Lending` orders the copies."""

    def __init__(self, scheduler: Scheduler, info: WorkerInfo, pulls: Pulls) -> None:
        self._scheduler = scheduler
        self._keeping = scheduler.keeping
        self._lending = scheduler.keeping.lending
        self._info = info
        self._pulls = pulls
        self._departures: dict[str, set[int]] = defaultdict(set)  # by request, the ranks that have sent their part

    def ask(self, puller: Puller, pull: Pull, digest: bytes) -> Header | PullRefused:
        """A peer wants a copy of the kept snapshot with this digest. Returns its header, or why there is no copy."""
        try:
            self._keeping.pull(pull.request_id, puller.name, pull.position, digest, pull.have, pull.ranks)
        except PullError as error:
            return PullRefused(pull.request_id, str(error), told=False)
        info = self._info
        return Header(pull.request_id, pull.position, digest.hex(), (), info.layout, info.weights_id)

    def call_off(self, request_id: str) -> None:
        """A peer no longer wants the copy that it asked for."""
        self._lending.call_off(request_id)

    def sent(self, request_id: str, rank: int) -> None:
        """A rank has sent its part of a copy; with the last part the loan ends."""
        if request_id not in self._lending:
            return
        gone = self._departures[request_id]
        gone.add(rank)
        if len(gone) == len(self._info.ranks):
            self.end(request_id)

    def end(self, request_id: str) -> Lent | None:
        """End a loan, whether the copy has left or never will; None if no copy was leaving for the request."""
        self._departures.pop(request_id, None)
        lent = self._lending.ended(request_id)
        if lent is not None:  # an answer that moved to another worker no longer needs its snapshot here
            self._scheduler.moving.pins.release_all(lent.kept)
        return lent

    def stop(self, peer: str) -> None:
        """End all loans to a peer that has gone."""
        for request_id in self._lending.drop(peer):
            self._departures.pop(request_id, None)

    def damaged(self, request_id: str) -> list[Action]:
        """The copy for a request could not be read from host memory or a file: refuse it, and all others of it."""
        lent = self.end(request_id)
        if lent is None:
            return []
        on_disk = lent.kept not in self._scheduler.cache.host
        return self.refuse([lent, *self._keeping.lost(lent.kept, on_disk)])

    def lost(self) -> list[Action]:
        """Refuse the waiting copies whose snapshots are kept in no tier any more."""
        return self.refuse(self._lending.forget(lambda lent: self._scheduler.cache.tier(lent.kept) is None))

    def refuse(self, copies: Iterable[Lent]) -> list[Action]:
        """Tell the peers that they will not get these copies."""
        pullers = ((self._pulls.worker(lent.peer), lent.request_id) for lent in copies)
        reason = "its copy below the device is damaged"
        return [ToPuller(to, PullRefused(request_id, reason, told=False)) for to, request_id in pullers if to]
