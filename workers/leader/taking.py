"""Snapshots that a worker pulls from others: requests that wait for a connection, and what has come. Pure."""

import dataclasses

from wire.protocol import Header, Pull, PullRefused, SeqOutput, WorkerInfo
from workers.cache.moves import Fetch
from workers.leader.actions import Action, Add, Arrived, Failed, ToPeer
from workers.leader.arrivals import header_mismatch
from workers.leader.endings import Endings
from workers.leader.loans import Loans
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import Expect, LinkAll, StepPlan, Unlink


class Taking:
    """The side of a hand-off that goes on with it."""

    def __init__(self, scheduler: Scheduler, info: WorkerInfo, endings: Endings, loans: Loans) -> None:
        self._scheduler = scheduler
        self._info = info
        self._endings = endings
        self._loans = loans
        self._links: list[LinkAll] = []
        self._unlinks: list[Unlink] = []

    def must_connect(self, seq: Sequence) -> bool:
        """Whether a new request waits here until its peer is connected; `joined` ends the wait."""
        if seq.source is None or seq.source.peer in self._endings.peers:
            return False
        self._endings.joining.add(seq.request_id)
        return True

    def joined(self, seq: Sequence, refusal: str | None, *, mismatch: bool = False) -> list[Action]:
        """Continue a request after the attempt to connect its peer. refusal: why it failed; None if it succeeded.

        mismatch: it failed because the peer's snapshots don't fit here.
        """
        if seq.request_id not in self._endings.joining:
            return []  # the request was given up meanwhile
        self._endings.joining.discard(seq.request_id)
        if refusal is None:
            return [Add(seq)]
        assert seq.source is not None
        if seq.source.kept:  # the prompt is computed here instead
            seq.source, seq.missed = None, "weights" if mismatch else "peer"
            return [Failed("mismatch" if mismatch else "peer"), Add(seq)]
        return [
            Failed("peer"),
            *self._endings.end(SeqOutput(seq.request_id, 0, finish="error", error=refusal, retry=True)),
        ]

    def linked(self, info: WorkerInfo) -> None:
        """A peer is connected; the ranks connect to its ranks with the next plan."""
        self._endings.peers.add(info.worker_id)
        self._links.append(LinkAll(info.worker_id, tuple((r.transfer_host, r.transfer_port) for r in info.ranks)))

    def peer_lost(self, worker_id: str, reason: str, now: float) -> list[Action]:
        """A peer went away: fail the requests whose snapshots were to come from it."""
        self._endings.peers.discard(worker_id)
        self._loans.stop(worker_id)
        self._unlinks.append(Unlink(worker_id))
        actions: list[Action] = []
        for request_id in self._scheduler.pulling_from(worker_id):
            actions += self._endings.fail(request_id, reason, "peer", now)
        return actions

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
            self._endings.arrivals.expect(fetch.request_id, self._header_of(fetch))
        actions: list[Action] = []
        for expect in plan.expects:
            if expect.peer in self._endings.peers:
                self._endings.arrivals.expect(expect.request_id)
                actions.append(ToPeer(expect.peer, self._pull_of(expect)))
            else:  # the peer went away after the request was queued
                actions += self._endings.fail(expect.request_id, f"prefill worker {expect.peer} went away", "peer", now)
        return actions

    def told(self, worker_id: str, message: Header | PullRefused, now: float) -> list[Action]:
        """A peer sends a snapshot's header, or refuses to send the snapshot."""
        if isinstance(message, PullRefused):
            if message.request_id not in self._scheduler.pulling_from(worker_id):
                return []
            if message.told:
                self._endings.arrivals.drop(message.request_id)
                return self._endings.finish(self._scheduler.call_off(message.request_id, now))
            return self._endings.fail(message.request_id, message.reason, "refused", now)
        seq = self._scheduler.sequences.get(message.request_id)
        if message.request_id not in self._endings.arrivals or seq is None:
            return []
        if reason := header_mismatch(seq, message, self._info):
            reason = f"snapshot from {worker_id} refused: {reason}"
            own = (message.weights_id, message.layout) == (self._info.weights_id, self._info.layout)
            return self._endings.fail(seq.request_id, reason, "mismatch", now, "peer" if own else "weights")
        seq.header_at = now
        return self._install(self._endings.arrivals.head(message), now)

    def received(self, request_id: str, rank: int, now: float) -> list[Action]:
        """A rank has its part of a snapshot."""
        return self._install(self._endings.arrivals.part(request_id, rank), now)

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

    def _install(self, whole: Header | None, now: float) -> list[Action]:
        if whole is None:
            return []
        actions: list[Action] = []
        seq = self._scheduler.sequences.get(whole.request_id)
        if seq is not None and seq.source is not None:
            actions.append(Arrived(now - seq.header_at))
        self._scheduler.install(whole.request_id, whole.generated, now)
        return actions
