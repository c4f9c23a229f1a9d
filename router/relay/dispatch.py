"""Gives sequences to workers, and to other workers when those fail.

A sequence without a worker, or without room, waits.
"""

import asyncio
import dataclasses
import itertools
import logging
import math
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Sequence

from router.errors import ApiError, invalid
from router.metrics import Metrics
from router.relay.admission import roomy
from router.relay.copies import Copies
from router.relay.fair import FairQueue
from router.relay.job import Job
from router.relay.leg import Leg
from router.relay.policy import Need, NoPlan, Plan, choose
from router.relay.prefixes import Candidates, candidates
from router.relay.recovery import Cause
from router.relay.stream import SequenceStream
from router.relay.table import WorkerTable
from router.relay.warming import ONE_TOKEN, Warming, pulling
from wire.protocol import Mark, PeerRef, Prefix, Submit, WorkerInfo
from wire.tokens import TokenIds

_log = logging.getLogger(__name__)
_LOOK_S = 0.002


class Dispatcher:
    """The dispatcher of one router. All calls come from one event loop.

    split: whether there is a prefill pool. max_waiting: sequences of one tenant at one priority that may wait for their
    turn. wait_s: how long a live sequence waits for a worker.
    """

    def __init__(
        self, table: WorkerTable, metrics: Metrics, *, split: bool, max_waiting: int, wait_s: float, retry_after_s: int
    ) -> None:
        self._table = table
        self._metrics = metrics
        self._split = split
        self._wait_s = wait_s
        self._retry_after_s = retry_after_s
        # Request-id prefix, unique per router.
        self._name = uuid.uuid4().hex[:12]
        self._jobs = itertools.count()
        self._waiting: dict[SequenceStream, asyncio.TimerHandle | None] = {}  # for a worker, until the timer fires
        self._pausing: dict[SequenceStream, asyncio.TimerHandle] = {}  # sequences between two tries
        self._apart: deque[SequenceStream] = deque()  # sequences to be tried one at a time; the first one runs
        self._fair: FairQueue[SequenceStream] = FairQueue(max_waiting)
        self._next: Plan | NoPlan | None = None  # plan of the sequence whose turn it is
        self._tenants: dict[SequenceStream, str] = {}  # of those that wait for their turn
        self._due: dict[SequenceStream, float] = {}  # deadlines of sequences that wait for their turn
        self._looking: asyncio.TimerHandle | None = None
        self._placed: set[SequenceStream] = set()  # sequences that have been given to workers
        # Those among them whose tenant has more than its share, with their priority and tenant.
        self._behind: dict[SequenceStream, tuple[int, str]] = {}
        self._priorities: Counter[int] = Counter()  # their priorities
        self._closed = False
        self._copies = Copies(self._name, table.fleet, table.link)
        table.on_live = self.wake
        table.on_load = self._look_soon

    @property
    def waiting(self) -> int:
        """The number of sequences that wait for their turn."""
        return len(self._fair)

    def plan(self, need: Need, begun_with: str | None = None) -> Plan | NoPlan:
        """Plan where a sequence would go now.

        begun_with: the weights that generated its tokens so far. It continues only with these, at a single worker.
        """
        return choose(self._table.fleet(begun_with), need, split=self._split and begun_with is None)

    def submit(self, job: Job) -> None:
        """Start a job's sequences; ApiError if no worker can compute one of them."""
        name = f"{self._name}-{next(self._jobs)}"
        metrics = self._metrics.times(job.priority)
        keyed = job.keyed
        for choice in job.choices:
            keys = (keyed.choice(choice.index), keyed.body) if keyed is not None else (b"", b"")
            stream = SequenceStream(
                f"{name}-{choice.index}", choice, job, metrics, self, job.priority, job.prefix_scope, *keys
            )
            stream.begun(time.monotonic())
            job.streams.append(stream)
            place = job.places.get(choice.index)
            link = self._table.live_link(place.worker_id) if place is not None else None
            if place is not None and link is not None:
                stream.attach(link, place.request_id)
            else:
                self._enter(stream, job)

    def _enter(self, stream: SequenceStream, job: Job) -> None:
        """Start a sequence if workers have room and no other one is before it; else let it wait for its turn."""
        plan = self.plan(self._need(stream), None)
        if isinstance(plan, NoPlan):
            if plan.reason == "too_long":
                raise invalid(plan.message, job.length_field, "context_length_exceeded")
            if plan.reason == "mismatch":
                raise self._unavailable(plan.message)
            self._metrics.routed(plan.reason)
            self._wait(stream)
            return
        self._check_deadline(plan, job)
        room = self._has_room(plan, job.priority)
        if room and not self._fair:
            self._metrics.routed("wait" if plan.waits else "room")
            self._start(stream, plan)
            return
        if job.live and self._fair.full(job.priority, job.tenant):
            self._metrics.refused.add()
            message = f"{self._fair.most} choices of yours wait at this priority already; try again soon"
            raise ApiError(429, message, code="queue_full", retry_after_s=self._retry_after_s)
        tokens = stream.known + min(stream.left, self._table.costs.answer_tokens)
        self._metrics.routed("wait")
        if job.deadline_s is not None:
            self._due[stream] = time.monotonic() + job.deadline_s
        self._fair.push(stream, job.priority, job.tenant, tokens)
        self._tenants[stream] = job.tenant
        # Else nobody may go: those before it were looked at when figures last changed.
        if room or self._precedes(stream, plan):
            self._look()

    def _check_deadline(self, plan: Plan, job: Job) -> None:
        """Refuse a sequence at once if its first token would come after its deadline, given everything before it."""
        if job.deadline_s is None:
            return
        fleet = self._table.fleet()
        computing = fleet.prefills if (plan.prefill or plan.decode).role == "prefill" else fleet.decodes
        rate = sum(1.0 / s.token_s for s in computing)
        expected = plan.first_token_s + self._fair.ahead(job.priority, job.tenant) / rate
        if expected > job.deadline_s:
            raise self._too_late(expected, job.deadline_s)

    def _too_late(self, expected_s: float, deadline_s: float) -> ApiError:
        self._metrics.late.add()
        return ApiError(
            503,
            f"the first token is expected in {expected_s:.1f} s, its deadline is {deadline_s:.3g} s; try again later",
            code="deadline_unmet",
            retry_after_s=max(self._retry_after_s, math.ceil(expected_s - deadline_s)),
        )

    def _has_room(self, plan: Plan, priority: int) -> bool:
        """Whether a plan's workers have room and little work before the sequence.

        Worse priorities yield to it in any case.
        """
        if any(other > priority for other in self._priorities):
            return True
        return roomy(plan)

    def _backlogged(self, stream: SequenceStream) -> bool:
        """Whether a waiting sequence's tenant has more than its share.

        More of its own waits than a turn's worth, or did so before prompts of it that are still to be computed.
        """
        lane = stream.priority, self._tenants[stream]
        return self._fair.backlogged(*lane) or any(
            at == lane and before.begun_with is None for before, at in self._behind.items()
        )

    def _precedes(self, stream: SequenceStream, plan: Plan) -> bool:
        """Whether workers have room for a sequence and would compute its prompt before others that they have."""
        return not plan.waits and not self._backlogged(stream) and self._table.behind()

    def _look_soon(self) -> None:
        """Look for room once after all messages of this turn of the loop, because workers' figures have changed."""
        if self._fair and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """Start waiting sequences in their turn while there is room."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        while (stream := self._fair.take(self._may_go)) is not None:
            assert self._next is not None
            plan, self._next = self._next, None
            due = self._due.pop(stream, math.inf)
            tenant = self._tenants.pop(stream)
            if stream.over:
                continue
            left_s = due - time.monotonic()
            if isinstance(plan, Plan) and plan.first_token_s > left_s:
                stream.abandon(self._too_late(plan.first_token_s, left_s))
            elif isinstance(plan, NoPlan):
                self._metrics.routed(plan.reason)
                self._wait(stream)
            else:
                if stream.behind:
                    self._behind[stream] = stream.priority, tenant
                self._start(stream, plan)

    def _may_go(self, stream: SequenceStream) -> bool:
        plan = self.plan(self._need(stream), stream.begun_with)
        self._next = plan
        stream.behind = self._backlogged(stream)
        if stream.over or isinstance(plan, NoPlan) or self._has_room(plan, stream.priority):
            return True
        if self._precedes(stream, plan):
            return True
        return plan.first_token_s > self._due.get(stream, math.inf) - time.monotonic()

    async def warm(self, token_ids: TokenIds, scope: str, marks: Sequence[Mark]) -> str | None:
        """Bring the state of known tokens to a decode worker's device. Returns the reason if that is impossible.

        marks: names of the tokens' prefixes.
        """
        held = self._table.held(Candidates.of((mark.position, mark.digest) for mark in marks))
        need = Need(len(token_ids), 1, random.getrandbits(32), held)
        plan = choose(self._table.fleet(), need, split=False)
        if isinstance(plan, NoPlan):
            return plan.message
        prefix = Prefix(scope=scope, kept_tokens=plan.kept_tokens, source=_ref(plan.source))
        submit = Submit(f"{self._name}-{next(self._jobs)}", token_ids, ONE_TOKEN, prefix=prefix, warm=True)
        warming = Warming(self._table.link(plan.decode.worker_id), submit, plan.work)
        try:
            return await warming.done
        finally:
            warming.cancel()

    def prepare(self, stream: SequenceStream, leg: Leg, kept_tokens: int) -> None:
        """Have another worker pull a leg's snapshot, and then have the leg's worker give the sequence up."""
        plan = self.plan(self._need(stream), stream.begun_with)
        if isinstance(plan, NoPlan) or stream.known <= kept_tokens:
            leg.move()
            return
        request_id, scope = f"{self._name}-{next(self._jobs)}", stream.prefix_scope
        submit = pulling(request_id, stream.token_ids, scope, leg.info, kept_tokens, stream.priority)
        warming = Warming(self._table.link(plan.decode.worker_id), submit, 1)

        def done(failed: asyncio.Future[str | None]) -> None:
            if not failed.cancelled() and failed.result() is None:
                stream.prepared = plan.decode.worker_id
            leg.move()

        warming.done.add_done_callback(done)

    def again(self, stream: SequenceStream, cause: Cause, after_s: float, apart: bool) -> None:
        """Try a sequence at other workers."""
        if self._closed:
            stream.abandon(ApiError(503, "the router is shutting down", code="worker_lost"))
            return
        self._metrics.resumed(cause)
        if apart and stream not in self._apart:
            self._apart.append(stream)
        if not apart or self._apart[0] is stream:
            loop = asyncio.get_running_loop()
            self._pausing[stream] = loop.call_later(after_s, self._try_again, stream)

    def kept(self, stream: SequenceStream, info: WorkerInfo, position: int) -> None:
        """Note that a worker keeps a snapshot of a running sequence's first `position` tokens."""
        self._copies.copy(stream, info, position)

    def progressed(self, stream: SequenceStream) -> None:
        """Note that a retried sequence has gained a token or ended, so it no longer has to run apart."""
        for timers in (self._waiting, self._pausing):
            if (timer := timers.pop(stream, None)) is not None:
                timer.cancel()
        if stream in self._apart:
            first = self._apart[0] is stream
            self._apart.remove(stream)
            if first and self._apart:
                self._try_again(self._apart[0])

    def drop(self, job: Job) -> None:
        """Give up a job's sequences."""
        for stream in job.streams:
            self.progressed(stream)
            self._fair.discard(stream)
            self._copies.drop(stream)
            self._due.pop(stream, None)
            self._tenants.pop(stream, None)
            self._behind.pop(stream, None)
            if stream in self._placed:
                self._placed.remove(stream)
                self._priorities[stream.priority] -= 1
                if not self._priorities[stream.priority]:
                    del self._priorities[stream.priority]
        self._look_soon()

    def wake(self) -> None:
        """Place the sequences that wait for a worker, because a new one is live."""
        for stream in list(self._waiting):
            if stream.over or self._place(stream) is None:
                timer = self._waiting.pop(stream, None)
                if timer is not None:
                    timer.cancel()

    def close(self) -> None:
        """Stop retrying: from now on failed sequences, and those that wait for a worker, end with an error."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for stream in {*self._waiting, *self._pausing, *self._apart, *self._fair}:
            if not stream.over:
                stream.abandon(ApiError(503, "the router is shutting down", code="worker_lost"))

    def _try_again(self, stream: SequenceStream) -> None:
        self._pausing.pop(stream, None)
        if not stream.over and self._place(stream) is not None:
            self._wait(stream)

    def _place(self, stream: SequenceStream) -> NoPlan | None:
        """Start a sequence at workers. Returns the reason if there are none."""
        plan = self.plan(self._need(stream), stream.begun_with)
        if isinstance(plan, NoPlan):
            self._metrics.routed(plan.reason)
            return plan
        if stream.set_back and self._table.in_doubt(plan.prefill, plan.decode):
            return NoPlan("no_worker", "the worker may have ended too")  # until it says something, or its end is known
        if stream.prepared is not None and (link := self._table.live_link(stream.prepared)) is not None:
            plan = dataclasses.replace(plan, decode=link.info)
        self._metrics.routed("wait" if plan.waits else "room")
        self._start(stream, plan)
        return None

    def _start(self, stream: SequenceStream, plan: Plan) -> None:
        link = self._table.link
        prefill = link(plan.prefill.worker_id) if plan.prefill is not None else None
        if stream not in self._placed:
            self._placed.add(stream)
            self._priorities[stream.priority] += 1
        stream.start(prefill, link(plan.decode.worker_id), _prefix(plan, stream), plan.work)

    def _need(self, stream: SequenceStream) -> Need:
        prompt = stream.choice.prompt
        if stream.names is None and (limits := self._table.limits()) is not None:
            stream.names = candidates(prompt.token_ids, prompt.boundaries, limits.page_size, stream.prefix_scope)
        names = stream.names or Candidates(())  # while no worker is live, nobody keeps anything
        if (mark := stream.copied) is not None:
            names = Candidates(Candidates.of([(mark.position, mark.digest)]).positions + names.positions)
        held = self._table.held(names)
        return Need(stream.known, stream.left, random.getrandbits(32), held)

    def _wait(self, stream: SequenceStream) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[stream] = loop.call_later(self._wait_s, self._give_up, stream) if stream.live else None

    def _give_up(self, stream: SequenceStream) -> None:
        self._waiting.pop(stream, None)
        stream.abandon(self._unavailable(f"no worker that can compute the request appeared within {self._wait_s:g} s"))

    def _unavailable(self, message: str) -> ApiError:
        return ApiError(503, message, code="no_worker", retry_after_s=self._retry_after_s)


def _prefix(plan: Plan, stream: SequenceStream) -> Prefix:
    source, kept_tokens, prompt = _ref(plan.source), plan.kept_tokens, stream.choice.prompt
    if stream.moved is not None:
        source, kept_tokens = stream.moved
    return Prefix(prompt.boundaries, stream.prefix_scope, kept_tokens, source, plan.foreign_tokens, prompt.rewritten)


def _ref(info: WorkerInfo | None) -> PeerRef | None:
    return PeerRef(info.worker_id, info.host, info.port) if info is not None else None
