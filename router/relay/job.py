"""Defines a running HTTP request: its choices' streams, and the wake-up of the coroutine that answers it."""

import asyncio
from collections.abc import Awaitable, Callable

from router.access.limits import Account
from router.errors import ApiError
from router.relay.choice import Choice
from router.relay.finding import Place
from router.relay.keyed import Keyed
from router.relay.stream import SequenceStream


class Job:
    """stream: whether each gain wakes the answering coroutine, or only the end. account: pays for its tokens.

    tenant: the owner of its key; "" if no key is needed. It waits for its turn among this tenant's jobs. live: whether
    a client waits for it; otherwise no timeout applies. length_field: the request's field that bounds the answer, for
    errors. prefix_scope: names the cached prefixes that it may use. deadline_s: seconds from submission within which
    its client wants a first token. keyed: the key by which its client may come back. request_id:
    its client's name for it; "" if it has none.
    """

    def __init__(
        self,
        choices: list[Choice],
        *,
        stream: bool,
        priority: int,
        account: Account | None = None,
        tenant: str = "",
        live: bool = True,
        length_field: str = "max_tokens",
        prefix_scope: str = "",
        deadline_s: float | None = None,
        keyed: Keyed | None = None,
        request_id: str = "",
    ) -> None:
        self.choices = choices
        self.priority = priority
        self.account = account
        self.tenant = tenant
        self.live = live
        self.length_field = length_field
        self.prefix_scope = prefix_scope
        self.deadline_s = deadline_s
        self.keyed = keyed
        self.request_id = request_id
        self.places: dict[int, Place] = {}  # by choice, the worker that computes it already
        self.streams: list[SequenceStream] = []
        self.error: ApiError | None = None
        self.gone = False  # the client has disconnected
        self._stream = stream
        self._left = len(choices)
        self._ready: list[Choice] = []
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None
        self._when_over: Callable[[], None] | None = None
        # Called before the client learns that the job ended well.
        self.at_end: Callable[[], Awaitable[None]] | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """The tokens of its prompts, and those generated so far. Choices of one prompt share it, so it counts once."""
        prompts = {id(choice.prompt): choice.prompt for choice in self.choices}.values()
        return sum(len(prompt.token_ids) for prompt in prompts), sum(choice.generated for choice in self.choices)

    @property
    def over(self) -> bool:
        """Whether all its choices have ended."""
        return self._left == 0 or self.error is not None or self.gone

    def when_over(self, call: Callable[[], None]) -> None:
        """Call `callback` when the job is over, even if its client still has to read the rest."""
        self._when_over = call

    async def settle(self) -> None:
        """Mark the job as over, before its client learns it."""
        if self.at_end is not None and self.error is None and not self.gone:
            await self.at_end()

    def gained(self, choice: Choice) -> None:
        """Note that a choice has something to take."""
        if self._stream:
            if not choice.queued:
                choice.queued = True
                self._ready.append(choice)
            self._wake()

    def landed(self, choice: Choice) -> None:
        """Note that a choice is complete."""
        self._left -= 1
        self.gained(choice)
        if self._left == 0:
            self._end()

    def failed(self, error: ApiError) -> None:
        """Fail the job and free its slots and pages at the workers."""
        if not self.over:
            self.error = error
            self.cancel()
            self._end()

    def leave(self) -> None:
        """Note that the client disconnected."""
        if not self.over:
            self.gone = True
            self.cancel()
            self._end()

    def cancel(self) -> None:
        """Abort the choices that still run; harmless if there are none."""
        for stream in self.streams:
            stream.cancel()

    def first_token_due(self, seconds: float) -> None:
        """Fail the job if a choice has no token yet. seconds: the timeout, for the message."""
        if any(c.generated == 0 and c.finish is None for c in self.choices):
            self._late("no first token", seconds)

    def due(self, seconds: float) -> None:
        """Fail the job if it is not over. seconds: the timeout, for the message."""
        self._late("no end", seconds)

    def ready(self) -> list[Choice]:
        """Choices that have gained something since the last call."""
        ready, self._ready = self._ready, []
        for choice in ready:
            choice.queued = False
        return ready

    async def wait(self) -> None:
        """Wait until something has happened since the last call. For one caller at a time."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._woken = False

    def _late(self, what: str, seconds: float) -> None:
        self.failed(ApiError(504, f"{what} within {seconds:g} s", code="timeout"))

    def _end(self) -> None:
        if self._when_over is not None:
            self._when_over()
        self._wake()

    def _wake(self) -> None:
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
