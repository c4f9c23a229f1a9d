"""Ends requests whose snapshots move between workers, and tells both workers of it. Pure."""

from collections import defaultdict

from msgspec import structs

from wire.protocol import CancelPull, Miss, PullRefused, SeqOutput
from workers.leader.actions import Action, Ended, Failed, ToPeer, ToPuller
from workers.leader.arrivals import Arrivals
from workers.leader.figures import TransferFailure
from workers.leader.pulls import Pulls
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence, State


class Endings:
    """What is open of the requests of one worker, and how it is closed.

    pulls: who wants which request's snapshot. arrivals: what has come of those that this worker wants. departures: the
    ranks that have sent their part of a request's snapshot. peers: workers it is connected to, to pull. joining:
    requests whose peer is being connected.
    """

    def __init__(self, scheduler: Scheduler, pulls: Pulls, arrivals: Arrivals) -> None:
        self._scheduler = scheduler
        self.pulls = pulls
        self.arrivals = arrivals
        self.departures: dict[str, set[int]] = defaultdict(set)
        self.peers: set[str] = set()
        self.joining: set[str] = set()

    def end(self, output: SeqOutput) -> list[Action]:
        """End a request with this output, outside any step."""
        self.departures.pop(output.request_id, None)
        self.pulls.drop(output.request_id)
        return [Ended(output)]

    def drop(self, request_id: str) -> list[Action]:
        """Free a request that its owner gave up, without an output."""
        self.joining.discard(request_id)
        self.departures.pop(request_id, None)
        seq = self._scheduler.sequences.get(request_id)
        if seq is None:
            return []
        actions = self.cancel(seq)
        self._scheduler.remove(request_id)
        return actions

    def cancel(self, seq: Sequence) -> list[Action]:
        """Give a request up: stop its snapshot from coming, and from leaving."""
        refusal = self.refuse(seq.request_id, "the request was given up at its prefill worker", told=True)
        return [*self.stop_pulling(seq), *refusal]

    def stop_pulling(self, seq: Sequence) -> list[Action]:
        """Stop a request's snapshot from coming."""
        self.arrivals.drop(seq.request_id)
        pulling = seq.state in (State.PULLING, State.DISPLACED)
        if seq.source is not None and pulling and seq.source.peer in self.peers:
            return [ToPeer(seq.source.peer, CancelPull(seq.request_id, seq.source.kept))]
        return []

    def fail(
        self, request_id: str, reason: str, why: TransferFailure, now: float, missed: Miss = "peer"
    ) -> list[Action]:
        """Handle a snapshot that does not arrive.

        Instead of a kept one tokens are computed; otherwise the request ends, to be retried.
        """
        seq = self._scheduler.sequences.get(request_id)
        if seq is None:
            return []
        if seq.source is not None and seq.source.kept:
            stop = self.stop_pulling(seq)
            self._scheduler.not_coming(request_id, missed)
            return [Failed(why), *stop]
        cancel = self.cancel(seq)
        return [Failed(why), *cancel, *self.not_handed_on(self._scheduler.fail(request_id, reason, now))]

    def not_handed_on(self, output: SeqOutput | None) -> list[Action]:
        """A snapshot did not get to the other worker: let the router retry."""
        return self.finish(None if output is None else structs.replace(output, retry=True))

    def finish(self, output: SeqOutput | None) -> list[Action]:
        """A request ends with this output, if there is one."""
        return [] if output is None else self.end(output)

    def refuse(self, request_id: str, reason: str, told: bool) -> list[Action]:
        """Tell the puller of a request, if there is one, that its snapshot won't come.

        told: the router knows how it ended.
        """
        puller = self.pulls.take(request_id)
        return [ToPuller(puller, PullRefused(request_id, reason, told))] if puller else []
