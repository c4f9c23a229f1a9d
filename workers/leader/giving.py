"""A worker's snapshots that other workers pull: those of its prompts, and copies of kept ones. Pure."""

from collections.abc import Iterable

from wire.protocol import Header, Pull, PullRefused, SeqOutput, WorkerInfo
from workers.leader.actions import Action, ToPuller
from workers.leader.endings import Endings
from workers.leader.loans import Loans
from workers.leader.pulls import Puller
from workers.schedule.keeping import PullError
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import Export


class Giving:
    """The side of a hand-off that computed the prompt."""

    def __init__(self, scheduler: Scheduler, info: WorkerInfo, endings: Endings, loans: Loans) -> None:
        self._scheduler = scheduler
        self._info = info
        self._endings = endings
        self._loans = loans

    def puller_joined(self, puller: Puller) -> None:
        """A decode worker connected; it may be its second connection."""
        self._endings.pulls.join(puller)

    def puller_left(self, puller: Puller, now: float) -> list[Action]:
        """A connection ended: unless its decode worker has another one, fail the requests that it was to get."""
        actions: list[Action] = []
        if self._endings.pulls.leave(puller):
            self._loans.stop(puller.name)
            for seq in [s for s in self._scheduler.sequences.values() if s.peer == puller.name]:
                actions += self._endings.fail(seq.request_id, f"decode worker {puller.name} went away", "peer", now)
        return actions

    def asked(self, puller: Puller, pull: Pull, now: float) -> list[Action]:
        """A decode worker pulls: it has room for a request's snapshot, or wants a copy of a kept one."""
        if pull.kept is not None:
            return [ToPuller(puller, self._loans.ask(puller, pull, pull.kept))]
        seq = self._scheduler.sequences.get(pull.request_id)
        actions: list[Action] = []
        if seq is not None:
            try:
                self._scheduler.pull(pull.request_id, puller.name, pull.have, pull.ranks)
            except PullError as error:
                return [ToPuller(puller, PullRefused(pull.request_id, str(error), told=False))]
            if seq.generated:
                actions = self._send_header(seq, puller.name)
        self._endings.pulls.ask(pull, puller, now)
        return actions

    def added(self, seq: Sequence) -> list[Action]:
        """Note that a request was scheduled; a decode worker may already have asked for its snapshot."""
        if asked := self._endings.pulls.by(seq.request_id):
            try:
                self._scheduler.pull(seq.request_id, *asked)
            except PullError as error:
                return self._endings.refuse(seq.request_id, str(error), told=False)
        return []

    def stepped(self, outputs: Iterable[SeqOutput], exports: Iterable[Export], now: float) -> list[Action]:
        """After a step, tell pullers which prompts are computed, and end requests whose snapshots were sent."""
        actions: list[Action] = []
        for output in outputs:
            if output.offset and output.finish is None:  # the answer goes on here
                continue
            seq = self._scheduler.sequences.get(output.request_id)
            if seq is None:
                actions += self._endings.refuse(output.request_id, "the request ended with its first token", told=True)
            elif seq.handoff and seq.peer is not None:
                actions += self._send_header(seq, seq.peer)
        for export in exports:
            seq = self._scheduler.sequences.get(export.request_id)
            if seq is not None and seq.handoff and seq.gone:  # the snapshot was sent before the step's results came
                actions += self._endings.finish(self._scheduler.sent(export.request_id, now))
        return actions

    def sent(self, request_id: str, rank: int, now: float) -> list[Action]:
        """A rank has sent its part of a snapshot.

        If it is a request's own snapshot, the request ends with the last part.
        """
        seq = self._scheduler.sequences.get(request_id)
        if seq is None or not seq.handoff:
            self._loans.sent(request_id, rank)
            return []
        gone = self._endings.departures[request_id]
        gone.add(rank)
        if len(gone) < len(self._info.ranks):
            return []
        del self._endings.departures[request_id]
        return self._endings.finish(self._scheduler.sent(request_id, now))

    def kept_cancelled(self, request_id: str) -> None:
        """A peer no longer wants the copy of a kept snapshot."""
        self._loans.call_off(request_id)

    def cancelled(self, request_id: str) -> list[Action]:
        """A decode worker no longer wants a request's snapshot, so nobody needs the request."""
        self._endings.pulls.drop(request_id)
        return self._endings.drop(request_id)

    def _send_header(self, seq: Sequence, peer: str) -> list[Action]:
        puller = self._endings.pulls.worker(peer)
        if puller is None:
            return []
        header = Header(
            request_id=seq.request_id,
            position=seq.prompt_tokens,
            token_hash=seq.known.digests.at(seq.tokens, seq.prompt_tokens).hex(),
            generated=tuple(seq.tokens[seq.prompt_tokens :]),
            layout=self._info.layout,
            weights_id=self._info.weights_id,
        )
        return [ToPuller(puller, header)]
