"""Gives sequences to workers, and to others when those fail. What finds no worker waits for one."""

import asyncio
import itertools
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Sequence

from router.errors import ApiError, invalid
from router.metrics import Metrics
from router.relay.job import Job
from router.relay.policy import Need, NoPlan, Plan, choose
from router.relay.prefixes import Candidates, candidates
from router.relay.recovery import Cause
from router.relay.stream import SequenceStream
from router.relay.table import WorkerTable
from router.relay.warming import ONE_TOKEN, Warming
from wire.protocol import Mark, PeerRef, Prefix, Submit, WorkerInfo
from wire.tokens import TokenIds

_log = logging.getLogger(__name__)


class Dispatcher:
    """One router's. split: whether prompts are computed by a pool of their own.

    wait_s: how long a sequence that somebody waits for waits for a worker. All calls come from one event loop.
    """

    def __init__(self, table: WorkerTable, metrics: Metrics, *, split: bool, wait_s: float, retry_after_s: int) -> None:
        self._table = table
        self._metrics = metrics
        self._split = split
        self._wait_s = wait_s
        self._retry_after_s = retry_after_s
        # Request-id prefix, unique per router.
        self._name = uuid.uuid4().hex[:12]
        self._jobs = itertools.count()
        self._waiting: dict[SequenceStream, asyncio.TimerHandle | None] = {}  # for a worker, until a timer ends it
        self._pausing: dict[SequenceStream, asyncio.TimerHandle] = {}  # between two tries
        self._apart: deque[SequenceStream] = deque()  # to be tried one at a time; the first is under way
        self._closed = False
        table.on_live = self.wake

    def plan(self, need: Need, begun_with: str | None = None) -> Plan | NoPlan:
        """Where a sequence would go now.

        begun_with: the weights that made its tokens so far. It goes on with no others, at one worker that computes all.
        """
        return choose(self._table.fleet(begun_with), need, split=self._split and begun_with is None)

    def submit(self, job: Job) -> None:
        """Start a job's sequences; ApiError if one can't be computed by any worker there is."""
        name = f"{self._name}-{next(self._jobs)}"
        metrics = self._metrics.times(job.priority)
        for choice in job.choices:
            stream = SequenceStream(
                f"{name}-{choice.index}", choice, job, metrics, self, job.priority, job.prefix_scope
            )
            stream.begun(time.monotonic())
            job.streams.append(stream)
            plan = self._place(stream)
            if plan is not None and plan.reason == "too_long":
                raise invalid(plan.message, job.length_field, "context_length_exceeded")
            if plan is not None and plan.reason == "mismatch":
                raise self._unavailable(plan.message)
            if plan is not None:
                self._wait(stream)

    async def warm(self, token_ids: TokenIds, scope: str, marks: Sequence[Mark]) -> str | None:
        """Bring the state of known tokens to a decode worker's device; why that can't be, if so. marks: beginnings."""
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

    def again(self, stream: SequenceStream, cause: Cause, after_s: float, apart: bool) -> None:
        """Try a sequence elsewhere."""
        if self._closed:
            stream.abandon(ApiError(503, "the router is shutting down", code="worker_lost"))
            return
        self._metrics.resumed(cause)
        if apart and stream not in self._apart:
            self._apart.append(stream)
        if not apart or self._apart[0] is stream:
            loop = asyncio.get_running_loop()
            self._pausing[stream] = loop.call_later(after_s, self._try_again, stream)

    def progressed(self, stream: SequenceStream) -> None:
        """A sequence that was tried again has gained a token, or has ended: nothing holds it against it any more."""
        for timers in (self._waiting, self._pausing):
            if (timer := timers.pop(stream, None)) is not None:
                timer.cancel()
        if stream in self._apart:
            first = self._apart[0] is stream
            self._apart.remove(stream)
            if first and self._apart:
                self._try_again(self._apart[0])

    def drop(self, job: Job) -> None:
        """Nobody wants a job's sequences any more."""
        for stream in job.streams:
            self.progressed(stream)

    def wake(self) -> None:
        """There is a worker that was not there before."""
        for stream in list(self._waiting):
            if stream.over or self._place(stream) is None:
                timer = self._waiting.pop(stream, None)
                if timer is not None:
                    timer.cancel()

    def close(self) -> None:
        """From now on what fails is not tried again, and what waits for a worker ends with an error."""
        self._closed = True
        for stream in {*self._waiting, *self._pausing, *self._apart}:
            if not stream.over:
                stream.abandon(ApiError(503, "the router is shutting down", code="worker_lost"))

    def _try_again(self, stream: SequenceStream) -> None:
        self._pausing.pop(stream, None)
        if not stream.over and self._place(stream) is not None:
            self._wait(stream)

    def _place(self, stream: SequenceStream) -> NoPlan | None:
        """Start it at workers; why there are none, if so."""
        plan = self.plan(self._need(stream), stream.begun_with)
        if isinstance(plan, NoPlan):
            self._metrics.routed(plan.reason)
            return plan
        self._metrics.routed("wait" if plan.waits else "room")
        link = self._table.link
        prefill = link(plan.prefill.worker_id) if plan.prefill is not None else None
        stream.start(prefill, link(plan.decode.worker_id), _prefix(plan, stream), plan.work)
        return None

    def _need(self, stream: SequenceStream) -> Need:
        prompt = stream.choice.prompt
        page_size = min((info.page_size for info in self._table.infos()), default=1)
        held = self._table.held(candidates(prompt.token_ids, prompt.boundaries, page_size, stream.prefix_scope))
        return Need(stream.known, stream.left, random.getrandbits(32), held)

    def _wait(self, stream: SequenceStream) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[stream] = loop.call_later(self._wait_s, self._give_up, stream) if stream.live else None

    def _give_up(self, stream: SequenceStream) -> None:
        self._waiting.pop(stream, None)
        stream.abandon(self._unavailable(f"no worker that can compute the request came within {self._wait_s:g} s"))

    def _unavailable(self, message: str) -> ApiError:
        return ApiError(503, message, code="no_worker", retry_after_s=self._retry_after_s)


def _prefix(plan: Plan, stream: SequenceStream) -> Prefix:
    source, kept_tokens = _ref(plan.source), plan.kept_tokens
    if stream.moved is not None:
        source, kept_tokens = stream.moved
    return Prefix(stream.choice.prompt.boundaries, stream.prefix_scope, kept_tokens, source)


def _ref(info: WorkerInfo | None) -> PeerRef | None:
    return PeerRef(info.worker_id, info.host, info.port) if info is not None else None
