"""The gateway behind the HTTP APIs: tokenizer, table of workers, admission and metrics of one replica."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from router.apart import Apart
from router.config import Pools, RouterConfig
from router.errors import ApiError, invalid
from router.holds import Holds
from router.metrics import Metrics, State
from router.relay.admission import Permit, Refusal, admit, missing
from router.relay.dispatch import Dispatcher
from router.relay.fleet import Limits
from router.relay.job import Job
from router.relay.keyed import reused, taken_over
from router.relay.link import ListedWorker
from router.relay.policy import Need, NoPlan, Plan
from router.relay.quota import token_quota
from router.relay.table import WorkerTable
from router.text.exact import ExactTurns
from router.text.grammar import Form
from router.text.grammar_check import GrammarCheck
from router.text.renderings import Renderings
from router.text.tokenizer import Tokenizer
from router.text.tools import tool_parser
from wire.progress import Starting
from wire.protocol import Mark, Role
from wire.tokens import TokenIds

# Bytes for the token ids of past answers: about 100,000 answers of 100 tokens.
_EXACT_BYTES = 64 * 1024 * 1024
# Conversations whose rendering is remembered.
_RENDERINGS = 50_000


class Service(Protocol):
    """Work that runs beside the requests of clients."""

    def start(self) -> None:
        """Begin, on the running event loop."""

    async def close(self) -> None:
        """End the work."""


class Gateway:
    """One router replica without its HTTP front.

    `start` binds it to the running event loop; everything else must be called on that loop.
    """

    def __init__(self, config: RouterConfig, pools: Pools) -> None:
        """Loads the tokenizer; FileNotFoundError if the checkpoint has none."""
        self.config = config
        self.pools = pools
        self.created = int(time.time())
        self.apart = Apart()
        self.tokenizer = Tokenizer(config.tokenizer, config.segment_cache_bytes)
        self.tool_parser = tool_parser(config.tool_parser)
        self._check_grammar = GrammarCheck(config.tokenizer)
        self.table = WorkerTable(config.name, config.secret, config.costs)
        self.exact = ExactTurns(_EXACT_BYTES)
        self.renderings = Renderings(_RENDERINGS)
        self.metrics = Metrics(self._observe)
        self.starting: tuple[Starting, ...] = ()  # workers that do not serve yet
        self.in_flight = 0
        self.on_failed: Callable[[Job], None] = lambda job: None  # told of each job that ends with an error
        # Closed with the gateway, after the connections to workers.
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self._keyed: dict[bytes, Job] = {}  # jobs in flight whose clients may come back
        self._holds = Holds()
        self._services: list[Service] = [self._holds]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limits: Limits | None = None  # from when a worker was last live
        self._complete = False  # every pool has had a worker
        self._dispatcher = Dispatcher(
            self.table,
            self.metrics,
            split=self.split,
            max_waiting=config.max_waiting,
            wait_s=config.first_token_timeout_s,
            retry_after_s=config.retry_after_s,
        )

    @property
    def split(self) -> bool:
        """Whether there is a prefill pool."""
        return self.pools.prefill > 0

    @property
    def waiting(self) -> int:
        """Choices in flight that wait for their turn."""
        return self._dispatcher.waiting

    async def start(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for service in self._services:
            service.start()

    def alongside(self, service: Service) -> None:
        """Add a service, which starts with the gateway (or now) and ends before the connections to workers."""
        self._services.append(service)
        if self._loop is not None:
            service.start()

    async def close(self) -> None:
        """Disconnect from the workers; jobs in flight fail. A second call does nothing."""
        while self._services:
            await self._services.pop().close()
        self._dispatcher.close()
        await self.table.close()
        while self.closers:
            await self.closers.pop()()
        self.apart.close()
        self._check_grammar.close()

    async def check(self, form: Form | None) -> None:
        """Check that workers can constrain an answer to a form; 400 if not."""
        if form is not None:
            await self._check_grammar(form, self.tokenizer.marks)

    async def check_grammar(self, text: str) -> str | None:
        """Why workers can't constrain an answer to a grammar that a router made earlier; None if they can."""
        return await self._check_grammar.text(text)

    async def update_workers(self, listed: Sequence[ListedWorker]) -> None:
        """Connect to the workers of discovery's current list, and disconnect from others."""
        await self.table.update(listed)

    def limits(self) -> Limits:
        """The limits of the live workers, else of those that were live last; 503 if there was none yet."""
        self._limits = self.table.limits() or self._limits
        if self._limits is None:
            raise self._unavailable("no worker is live; try again soon")
        return self._limits

    def plan(self, need: Need) -> Plan | NoPlan:
        """Plan where a sequence would go now."""
        return self._dispatcher.plan(need)

    async def warm(self, token_ids: TokenIds, scope: str, marks: Sequence[Mark]) -> str | None:
        """Bring the state of known tokens to a worker's device. Returns the reason if that is impossible."""
        return await self._dispatcher.warm(token_ids, scope, marks)

    def unready(self) -> str | None:
        """The reason why no request can be served now; None if one can.

        At first every pool must have a worker. From then on any worker suffices, because each can compute prompts and
        answers; requests that arrive while no worker is live wait for one.
        """
        if (reason := self._starting()) is None:
            plan = self.plan(Need(prompt_tokens=1, max_tokens=1))
            reason = plan.message if isinstance(plan, NoPlan) else None
        ways = [f"a {worker.role} worker: {worker.progress}" for worker in self.starting]
        return reason if reason is None else "; ".join([reason, *ways])

    def pools_have_served(self, roles: Collection[Role]) -> None:
        """Note that these pools have had a worker, possibly before this router began."""
        self._complete = self._complete or missing(dict.fromkeys(roles, 1), self.split) is None

    def _starting(self) -> str | None:
        """The pools that still lack their first worker."""
        if self._complete:
            return None
        reason = missing(self.table.live(), self.split)
        self._complete = reason is None
        return reason

    def admitted(self, choices: int) -> Permit:
        """Reserve room for a request's choices until the block ends at the latest; 429 or 503 if there is none."""
        if choices > self.config.max_queue:
            raise invalid(
                f"the prompts times 'n' make {choices} choices, at most {self.config.max_queue} are served", "n"
            )
        starting = self._starting()
        refusal = Refusal(503, starting) if starting else admit(self.in_flight, choices, self.config.max_queue)
        if refusal is not None:
            if refusal.status == 429:
                self.metrics.refused.add()
            raise ApiError(
                refusal.status,
                refusal.message,
                code="queue_full" if refusal.status == 429 else "no_worker",
                retry_after_s=self.config.retry_after_s,
            )
        self.in_flight += choices
        return Permit(lambda: self._leave(choices))

    def _leave(self, choices: int) -> None:
        self.in_flight -= choices

    async def rejoin(self, job: Job) -> None:
        """Find the worker that already computes a job whose client came back; 422 if the key came with another body."""
        keyed = job.keyed
        if keyed is None:
            return
        before = self._keyed.get(keyed.name)
        if before is not None and before.keyed is not None:
            if before.keyed.body != keyed.body:
                raise reused()
            before.failed(taken_over())
        self._keyed[keyed.name] = job
        try:
            for choice in job.choices:
                place = await self.table.find(keyed.choice(choice.index))
                if place is not None and place.body != keyed.body:
                    raise reused()
                if place is not None:
                    job.places[choice.index] = place
        except BaseException:
            self._leave_key(job)
            raise

    def _leave_key(self, job: Job) -> None:
        if job.keyed is not None and self._keyed.get(job.keyed.name) is job:
            del self._keyed[job.keyed.name]

    @contextmanager
    def flying(self, job: Job, permit: Permit | None = None) -> Iterator[None]:
        """Run the job's sequences at workers; those that still run when the block ends are aborted.

        The permit is released when the job is over, even if its client still reads. ApiError if its key has too few
        tokens or no worker can take it.
        """
        config = self.config
        timers: list[asyncio.TimerHandle] = []
        first_s = min(config.first_token_timeout_s, job.deadline_s or math.inf)
        limits = ((first_s, job.first_token_due), (config.request_timeout_s, job.due))
        if permit is not None:
            job.when_over(permit.release)
        try:
            with token_quota(job):
                self._dispatcher.submit(job)
                if job.live:
                    loop = asyncio.get_running_loop()
                    timers = [loop.call_later(seconds, due, seconds) for seconds, due in limits]
                yield
        finally:
            for timer in timers:
                timer.cancel()
            job.cancel()
            self._dispatcher.drop(job)
            self._leave_key(job)
            if job.error is not None:
                self.on_failed(job)
            if job.streams:
                self.metrics.ended(choice.generated for choice in job.choices)
                if job.tenant:
                    self.metrics.used(job.tenant, *job.tokens)

    def _observe(self) -> State:
        return State(
            self.table.snapshot(),
            {"prefill": self.pools.prefill, "decode": self.pools.decode},
            self.in_flight,
            self.waiting,
            self.config.max_queue,
            self._holds.longest(time.monotonic()),
        )

    def _unavailable(self, message: str) -> ApiError:
        return ApiError(503, message, code="no_worker", retry_after_s=self.config.retry_after_s)
