"""Hand-offs of snapshots between workers, as one worker takes part in them. Pure: no sockets, no clock, no tensors.

Each method takes one event and returns the actions that follow from it, in order; the leader performs them. A prefill
worker remembers who pulls which request (`Pulls`) and which ranks have sent their part; a decode worker remembers
which peers it is connected to and what has come of each snapshot it pulls (`Arrivals`).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from msgspec import structs

from wire.protocol import CancelPull, Header, Miss, Pull, PullRefused, SeqOutput, WorkerInfo
from workers.cache.moves import Fetch
from workers.leader.actions import Action, Add, Arrived, Ended, Failed, Told, ToPeer, ToPuller
from workers.leader.arrivals import Arrivals, header_mismatch
from workers.leader.figures import TransferFailure
from workers.leader.loans import Loans
from workers.leader.pulls import Puller, Pulls
from workers.schedule.keeping import PullError
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence, State
from workers.schedule.step import Expect, Export, LinkAll, StepPlan, Unlink

# Seconds for a router to find another worker and for that one to pull. Then the snapshot kept for it is given up.
_MOVE_S = 5.0
# For the next worker to take what is computed of an answer by now, while the answer goes on here.
_COPY_S = 2.0


class HandOffs:
    """All hand-offs of one worker. timeout_s: how long a pull waits for a request that has not arrived."""

    def __init__(self, scheduler: Scheduler, info: WorkerInfo, timeout_s: float) -> None:
        self._scheduler = scheduler
        self._info = info
        self._timeout_s = timeout_s
        self._peers: set[str] = set()
        self._joining: set[str] = set()  # requests whose peer is being connected
        self._pulls = Pulls()
        self._arrivals = Arrivals(len(info.ranks))
        self._departures: dict[str, set[int]] = defaultdict(set)  # by request, the ranks that have sent their part
        self._loans = Loans(scheduler, info, self._pulls)
        self._links: list[LinkAll] = []
        self._unlinks: list[Unlink] = []

    def __contains__(self, request_id: str) -> bool:
        """Whether a request waits here for its peer to be connected."""
        return request_id in self._joining

    @property
    def idle(self) -> bool:
        """Whether no request waits for its peer to be connected."""
        return not self._joining

    # Requests that arrive and end

    def must_connect(self, seq: Sequence) -> bool:
        """Whether a new request waits here until its peer is connected; `joined` ends the wait."""
        if seq.source is None or seq.source.peer in self._peers:
            return False
        self._joining.add(seq.request_id)
        return True

    def joined(self, seq: Sequence, refusal: str | None, *, mismatch: bool = False) -> list[Action]:
        """Continue a request after the attempt to connect its peer. refusal: why it failed; None if it succeeded.

        mismatch: it failed because the peer's snapshots don't fit here.
        """
        if seq.request_id not in self._joining:
            return []  # the request was given up meanwhile
        self._joining.discard(seq.request_id)
        if refusal is None:
            return [Add(seq)]
        assert seq.source is not None
        if seq.source.kept:  # the prompt is computed here instead
            seq.source, seq.missed = None, "weights" if mismatch else "peer"
            return [Failed("mismatch" if mismatch else "peer"), Add(seq)]
        return [Failed("peer"), *self.end(SeqOutput(seq.request_id, 0, finish="error", error=refusal, retry=True))]

    def added(self, seq: Sequence) -> list[Action]:
        """Note that a request was scheduled; a decode worker may already have asked for its snapshot."""
        if asked := self._pulls.by(seq.request_id):
            try:
                self._scheduler.pull(seq.request_id, *asked)
            except PullError as error:
                return self._refuse(seq.request_id, str(error), told=False)
        return []

    def end(self, output: SeqOutput) -> list[Action]:
        """End a request with this output, outside any step."""
        self._departures.pop(output.request_id, None)
        self._pulls.drop(output.request_id)
        return [Ended(output)]

    def drop(self, request_id: str) -> list[Action]:
        """Free a request that its owner gave up, without an output."""
        self._joining.discard(request_id)
        self._departures.pop(request_id, None)
        seq = self._scheduler.sequences.get(request_id)
        if seq is None:
            return []
        actions = self._cancel(seq)
        self._scheduler.remove(request_id)
        return actions

    def overdue(self, now: float) -> list[Action]:
        """End what has waited too long: snapshots that nobody pulls, and pulls whose request never came."""
        actions: list[Action] = []
        for output in self._scheduler.overdue(now):
            actions += [Failed("timeout"), *self._not_handed_on(output)]
        for request_id in self._pulls.asked_before(now - self._timeout_s):
            if request_id not in self._scheduler.sequences:
                actions += self._refuse(request_id, "its prefill worker never got the request", told=False)
        return actions

    # Steps

    def with_links(self, plan: StepPlan) -> StepPlan:
        """The plan, with the peers that the ranks are to connect and to forget."""
        if not (self._links or self._unlinks):
            return plan
        plan = dataclasses.replace(plan, links=tuple(self._links), unlinks=tuple(self._unlinks))
        self._links.clear()
        self._unlinks.clear()
        return plan

    def planned(self, plan: StepPlan, now: float) -> list[Action]:
        """Ask the peers for the snapshots that the ranks expect since this plan was sent."""
        for fetch in plan.fetches:
            self._arrivals.expect(fetch.request_id, self._header_of(fetch))
        actions: list[Action] = []
        for expect in plan.expects:
            if expect.peer in self._peers:
                self._arrivals.expect(expect.request_id)
                actions.append(ToPeer(expect.peer, self._pull_of(expect)))
            else:  # the peer went away after the request was queued
                actions += self._fail(expect.request_id, f"prefill worker {expect.peer} went away", "peer", now)
        return actions

    def stepped(self, outputs: Iterable[SeqOutput], exports: Iterable[Export], now: float) -> list[Action]:
        """After a step, tell pullers which prompts are computed, and end requests whose snapshots were sent."""
        actions: list[Action] = []
        for output in outputs:
            if output.offset and output.finish is None:  # the answer goes on here
                continue
            seq = self._scheduler.sequences.get(output.request_id)
            if seq is None:
                actions += self._refuse(output.request_id, "the request ended with its first token", told=True)
            elif seq.handoff and seq.peer is not None:
                actions += self._send_header(seq, seq.peer)
        for export in exports:
            seq = self._scheduler.sequences.get(export.request_id)
            if seq is not None and seq.handoff and seq.gone:  # the snapshot was sent before the step's results came
                actions += self._finish(self._scheduler.sent(export.request_id, now))
        return actions

    # Decode workers that pull from here

    def puller_joined(self, puller: Puller) -> None:
        """A decode worker connected; it may be its second connection."""
        self._pulls.join(puller)

    def puller_left(self, puller: Puller, now: float) -> list[Action]:
        """A connection ended: unless its decode worker has another one, fail the requests that it was to get."""
        actions: list[Action] = []
        if self._pulls.leave(puller):
            self._loans.stop(puller.name)
            for seq in [s for s in self._scheduler.sequences.values() if s.peer == puller.name]:
                actions += self._fail(seq.request_id, f"decode worker {puller.name} went away", "peer", now)
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
        self._pulls.ask(pull, puller, now)
        return actions

    def kept_cancelled(self, request_id: str) -> None:
        """A peer no longer wants the copy of a kept snapshot."""
        self._loans.call_off(request_id)

    def cancelled(self, request_id: str) -> list[Action]:
        """A decode worker no longer wants a request's snapshot, so nobody needs the request."""
        self._pulls.drop(request_id)
        return self.drop(request_id)

    def sent(self, request_id: str, rank: int, now: float) -> list[Action]:
        """A rank has sent its part of a snapshot.

        If it is a request's own snapshot, the request ends with the last part.
        """
        seq = self._scheduler.sequences.get(request_id)
        if seq is None or not seq.handoff:
            self._loans.sent(request_id, rank)
            return []
        gone = self._departures[request_id]
        gone.add(rank)
        if len(gone) < len(self._info.ranks):
            return []
        del self._departures[request_id]
        return self._finish(self._scheduler.sent(request_id, now))

    # Peers that this worker pulls from

    def linked(self, info: WorkerInfo) -> None:
        """A peer is connected; the ranks connect to its ranks with the next plan."""
        self._peers.add(info.worker_id)
        self._links.append(LinkAll(info.worker_id, tuple((r.transfer_host, r.transfer_port) for r in info.ranks)))

    def peer_lost(self, worker_id: str, reason: str, now: float) -> list[Action]:
        """A peer went away: fail the requests whose snapshots were to come from it."""
        self._peers.discard(worker_id)
        self._loans.stop(worker_id)
        self._unlinks.append(Unlink(worker_id))
        actions: list[Action] = []
        for request_id in self._scheduler.pulling_from(worker_id):
            actions += self._fail(request_id, reason, "peer", now)
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
                actions += self._fail(request_id, f"the transfer link to {worker_id} broke: {reason}", "link", now)
        return actions

    def told(self, worker_id: str, message: Header | PullRefused, now: float) -> list[Action]:
        """A peer sends a snapshot's header, or refuses to send the snapshot."""
        if isinstance(message, PullRefused):
            if message.request_id not in self._scheduler.pulling_from(worker_id):
                return []
            if message.told:
                self._arrivals.drop(message.request_id)
                return self._finish(self._scheduler.call_off(message.request_id, now))
            return self._fail(message.request_id, message.reason, "refused", now)
        seq = self._scheduler.sequences.get(message.request_id)
        if message.request_id not in self._arrivals or seq is None:
            return []
        if reason := header_mismatch(seq, message, self._info):
            reason = f"snapshot from {worker_id} refused: {reason}"
            own = (message.weights_id, message.layout) == (self._info.weights_id, self._info.layout)
            return self._fail(seq.request_id, reason, "mismatch", now, "peer" if own else "weights")
        seq.header_at = now
        return self._install(self._arrivals.head(message), now)

    def received(self, request_id: str, rank: int, now: float) -> list[Action]:
        """A rank has its part of a snapshot."""
        return self._install(self._arrivals.part(request_id, rank), now)

    def fetch_failed(self, request_id: str, peer: str) -> list[Action]:
        """A kept snapshot in host memory or a file is damaged: the request that waits for it is computed instead.

        peer: the worker it was to be sent to; "" for none.
        """
        if peer:
            return self._loans.damaged(request_id)
        self._arrivals.drop(request_id)
        return self._loans.refuse(self._scheduler.not_coming(request_id, damaged=True))

    def write_failed(self, file: str) -> list[Action]:
        """A kept snapshot could not be written to its file."""
        self._scheduler.cache.write_failed(file)
        return self._loans.lost()

    # The worker is about to end

    def move_away(self, now: float) -> list[Action]:
        """Give up all answers: they continue at other workers, from their states, which are kept here for a while.

        First each one's router is told what is kept of it, so that the next worker takes that while the answer goes on
        here. It is given up once the router says that it is there, or in _COPY_S.
        """
        actions: list[Action] = []
        for seq in self._scheduler.moving.answers():
            if seq.leave_by is None:
                seq.leave_by = now
                if (told := self._scheduler.moving.announce(seq, now + _COPY_S + _MOVE_S, now)) is not None:
                    seq.leave_by = now + _COPY_S
                    actions.append(Told(told))
            if seq.leave_by <= now:
                actions += self._cancel(seq)
                actions += self.end(self._scheduler.moving.move(seq, now + _MOVE_S, now))
        return actions

    def copied(self, request_id: str) -> None:
        """Give an answer up, because the next worker has the snapshot that its router was told of."""
        seq = self._scheduler.sequences.get(request_id)
        if seq is not None and seq.leave_by is not None:
            seq.leave_by = 0.0

    # Inside

    def _header_of(self, fetch: Fetch) -> Header:
        """The header of a snapshot from host memory: the index knows it, so only the ranks' parts are to come."""
        seq = self._scheduler.sequences[fetch.request_id]
        digest = seq.known.digests.at(seq.tokens, fetch.position).hex()
        return Header(fetch.request_id, fetch.position, digest, (), self._info.layout, self._info.weights_id)

    def _pull_of(self, expect: Expect) -> Pull:
        seq = self._scheduler.sequences[expect.request_id]
        assert seq.source is not None
        known, position = seq.known, seq.source.position
        kept = known.digests.at(known.ids, position) if seq.source.kept else None
        return Pull(seq.request_id, expect.start, position, kept, len(self._info.ranks))

    def _send_header(self, seq: Sequence, peer: str) -> list[Action]:
        puller = self._pulls.worker(peer)
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

    def _refuse(self, request_id: str, reason: str, told: bool) -> list[Action]:
        """Tell the puller of a request, if there is one, that its snapshot won't come.

        told: the router knows how it ended.
        """
        puller = self._pulls.take(request_id)
        return [ToPuller(puller, PullRefused(request_id, reason, told))] if puller else []

    def _install(self, whole: Header | None, now: float) -> list[Action]:
        if whole is None:
            return []
        actions: list[Action] = []
        seq = self._scheduler.sequences.get(whole.request_id)
        if seq is not None and seq.source is not None:
            actions.append(Arrived(now - seq.header_at))
        self._scheduler.install(whole.request_id, whole.generated, now)
        return actions

    def _cancel(self, seq: Sequence) -> list[Action]:
        """Give a request up: stop its snapshot from coming, and from leaving."""
        refusal = self._refuse(seq.request_id, "the request was given up at its prefill worker", told=True)
        return [*self._stop_pulling(seq), *refusal]

    def _stop_pulling(self, seq: Sequence) -> list[Action]:
        self._arrivals.drop(seq.request_id)
        pulling = seq.state in (State.PULLING, State.DISPLACED)
        if seq.source is not None and pulling and seq.source.peer in self._peers:
            return [ToPeer(seq.source.peer, CancelPull(seq.request_id, seq.source.kept))]
        return []

    def _fail(
        self, request_id: str, reason: str, why: TransferFailure, now: float, missed: Miss = "peer"
    ) -> list[Action]:
        """Handle a snapshot that does not arrive.

        Instead of a kept one tokens are computed; otherwise the request ends, to be retried.
        """
        seq = self._scheduler.sequences.get(request_id)
        if seq is None:
            return []
        if seq.source is not None and seq.source.kept:
            stop = self._stop_pulling(seq)
            self._scheduler.not_coming(request_id, missed)
            return [Failed(why), *stop]
        cancel = self._cancel(seq)
        return [Failed(why), *cancel, *self._not_handed_on(self._scheduler.fail(request_id, reason, now))]

    def _not_handed_on(self, output: SeqOutput | None) -> list[Action]:
        """A snapshot did not get to the other worker: let the router retry."""
        return self._finish(None if output is None else structs.replace(output, retry=True))

    def _finish(self, output: SeqOutput | None) -> list[Action]:
        return [] if output is None else self.end(output)
