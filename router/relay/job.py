"""One HTTP request under way: its choices' streams, and the wake-up of the coroutine that answers it."""

import asyncio
from collections.abc import Awaitable, Callable

from router.access.limits import Account
from router.errors import ApiError
from router.relay.choice import Choice
from router.relay.finding import Place
from router.relay.keyed import Keyed
from router.relay.stream import SequenceStream


class Job:
    """stream: whether each gain wakes the answering coroutine, or only the end. account: whose tokens it uses.
    tenant: whose key it came with, "" where none is asked for; it waits for its turn among that one's.

    request_id: its client's name for it; "" where it has none.
    live: whether a client waits for it; else no timeout applies. length_field: the request's field that bounds the
    answer, for errors. prefix_scope: whose kept prefixes it may use. deadline_s: by when, from its
    submission, its client wants a first token. keyed: by which its client may come back for it.
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
        self.places: dict[int, Place] = {}  # by choice, who computes it already
        self.streams: list[SequenceStream] = []
        self.error: ApiError | None = None
        self.gone = False  # the client has left
        self._stream = stream
        self._left = len(choices)
        self._ready: list[Choice] = []
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None
        self._when_over: Callable[[], None] | None = None
        # What is to be done before its client is told that it ended well.
        self.at_end: Callable[[], Awaitable[None]] | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Of its prompts and, so far, of its answers; the choices of one prompt share it."""
        prompts = {id(choice.prompt): choice.prompt for choice in self.choices}.values()
        return sum(len(prompt.token_ids) for prompt in prompts), sum(choice.generated for choice in self.choices)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self._left == 0 or self.error is not None or self.gone

    def when_over(self, call: Callable[[], None]) -> None:
        """Call this once it is over, though its client may still have to read what came."""
        self._when_over = call

    async def settle(self) -> None:
        """It is over; its client is about to be told."""
        if self.at_end is not None and self.error is None and not self.gone:
            await self.at_end()

    def gained(self, choice: Choice) -> None:
        """The choice has something to take."""
        if self._stream:
            if not choice.queued:
                choice.queued = True
                self._ready.append(choice)
            self._wake()

    def landed(self, choice: Choice) -> None:
        """The choice is whole."""
        self._left -= 1
        self.gained(choice)
        if self._left == 0:
            self._end()

    def failed(self, error: ApiError) -> None:
        """It can't be finished: free what the workers hold of it."""
        if not self.over:
            self.error = error
            self.cancel()
            self._end()

    def leave(self) -> None:
        """The client hung up."""
        if not self.over:
            self.gone = True
            self.cancel()
            self._end()

    def cancel(self) -> None:
        """Abort whatever is still under way; harmless when nothing is."""
        for stream in self.streams:
            stream.cancel()

    def first_token_due(self, seconds: float) -> None:
        """Fail if a choice has nothing yet."""
        if any(c.generated == 0 and c.finish is None for c in self.choices):
            self._late("no first token", seconds)

    def due(self, seconds: float) -> None:
        """Fail if it is not over."""
        self._late("no end", seconds)

    def ready(self) -> list[Choice]:
        """Choices that have gained since the last call."""
        ready, self._ready = self._ready, []
        for choice in ready:
            choice.queued = False
        return ready

    async def wait(self) -> None:
        """Until something has happened since the last call. One caller at a time."""
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
