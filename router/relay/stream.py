"""One sequence under way at its two workers: puts their outputs in order, and ends at both whatever happens."""

from __future__ import annotations

from typing import Protocol

from router.errors import ApiError
from router.metrics import StreamTimes
from router.relay.choice import Choice, ServedBy
from wire.protocol import Abort, Decode, PeerRef, Prefill, Prefix, SeqOutput, Timings, WorkerInfo

_NONE = Timings()


class Link(Protocol):
    """A worker's connection, as a stream uses it."""

    info: WorkerInfo

    def submit(self, message: Prefill | Decode, stream: SequenceStream) -> None:
        """Send, and from now on give the stream its outputs."""

    def abort(self, message: Abort) -> None:
        """Send."""

    def forget(self, request_id: str) -> None:
        """Give it no more outputs."""


class Owner(Protocol):
    """The request a stream is part of."""

    def gained(self, choice: Choice) -> None:
        """The choice has something to take."""

    def landed(self, choice: Choice) -> None:
        """The choice is whole."""

    def failed(self, error: ApiError) -> None:
        """The choice can't be finished."""


class SequenceStream:
    """A choice's two halves. `prefill` is None where the decode worker computes the prompt."""

    __slots__ = (
        "_decode",
        "_decode_info",
        "_decode_timings",
        "_first_at",
        "_last_at",
        "_metrics",
        "_next",
        "_open",
        "_owner",
        "_parked",
        "_prefill",
        "_prefill_info",
        "_prefill_timings",
        "_submitted_at",
        "choice",
        "request_id",
    )

    def __init__(
        self, request_id: str, choice: Choice, prefill: Link | None, decode: Link, owner: Owner, metrics: StreamTimes
    ) -> None:
        self.request_id = request_id
        self.choice = choice
        self._prefill = prefill
        self._decode = decode
        # Of the workers as they are now: a link may meet a successor.
        self._prefill_info = (prefill or decode).info
        self._decode_info = decode.info
        self._owner = owner
        self._metrics = metrics
        self._next = 0  # index of the next generated token
        self._parked: dict[int, SeqOutput] = {}
        self._open: list[Link] = []
        self._prefill_timings = _NONE
        self._decode_timings = _NONE
        self._submitted_at = 0.0
        self._first_at = 0.0
        self._last_at = 0.0

    @property
    def workers(self) -> tuple[str, str]:
        """Ids of the prefill and the decode worker; the same where there is one."""
        return self._prefill_info.worker_id, self._decode_info.worker_id

    def start(self, priority: int, prefix: Prefix, now: float) -> None:
        """Submit to both workers at once: the decode worker may pull the first chunks while later ones compute."""
        self._submitted_at = now
        prompt, sampling = self.choice.prompt.token_ids, self.choice.sampling
        source = None
        if self._prefill is not None:
            info = self._prefill_info
            source = PeerRef(info.worker_id, info.host, info.port)
            self._open.append(self._prefill)
            self._prefill.submit(Prefill(self.request_id, prompt, sampling, priority, prefix), self)
        self._open.append(self._decode)
        self._decode.submit(Decode(self.request_id, prompt, sampling, priority, source, prefix), self)

    def receive(self, link: Link, output: SeqOutput, now: float) -> None:
        """An output of one of the two."""
        if output.timings is not None:
            if link is self._prefill:
                self._prefill_timings = output.timings
            else:
                self._decode_timings = output.timings
        if output.cached_tokens:
            self.choice.cached_tokens, self.choice.cached_from = output.cached_tokens, output.cached_from
        if output.finish is not None:
            # The worker has forgotten it: nothing to abort there any more.
            self._open.remove(link)
            link.forget(self.request_id)
            if output.finish == "handoff":
                self._handed_off(link, now)
                return
            if output.finish == "error":
                self._fail(link, output.error or "gave no reason")
                return
            if output.finish == "abort":  # the other worker says how it ended
                return
        if output.offset == self._next:
            self._apply(output, now)
            while self.choice.finish is None and self._parked and (later := self._parked.pop(self._next, None)):
                self._apply(later, now)
        elif output.offset > self._next:
            self._parked[output.offset] = output
        else:
            self._fail(link, f"sent token {output.offset} twice")

    def lost(self, link: Link, now: float) -> None:
        """A worker's connection ended."""
        if link not in self._open:
            return  # a sibling's loss has cancelled this one already
        self._open.remove(link)
        if self.choice.finish is not None:
            self._land(now)  # only the lost worker's figures are missing
        elif link is self._decode or self._next <= 1:  # else the snapshot had left it
            self._abandon(ApiError(503, f"{self._name(link)} ended while serving the request", code="worker_lost"))

    def broke(self, error: Exception) -> None:
        """The router itself failed over an output."""
        self._abandon(ApiError(500, f"internal error: {type(error).__name__}", code="internal_error"))

    def cancel(self) -> None:
        """Free whatever the workers hold of it."""
        for link in self._open:
            link.forget(self.request_id)
            link.abort(Abort(self.request_id))
        self._open.clear()

    def _handed_off(self, link: Link, now: float) -> None:
        if self.choice.finish is not None:
            self._land(now)
        elif self._next == 0:
            self._fail(link, "handed the request off without its first token")

    def _apply(self, output: SeqOutput, now: float) -> None:
        choice, tokens = self.choice, output.token_ids
        if output.prompt_logprobs:
            choice.prompt_logprobs = output.prompt_logprobs
        if tokens:
            if self._next:
                self._metrics.token_gap(now - self._last_at, len(tokens))
            else:
                self._first_at = now
                self._metrics.first_token(now - self._submitted_at, len(tokens))
            self._last_at = now
            self._next += len(tokens)
        finish = output.finish
        choice.feed(tokens, output.logprobs, finish if finish in ("stop", "length") else None)
        if choice.finish is None:
            self._owner.gained(choice)
        elif finish is None:
            self.cancel()  # a stop string: the workers do not know
            self._land(now)
        elif self._prefill is not None and self._open == [self._decode]:
            self.cancel()  # it ended with the prompt's own token: the decode worker waits for nothing
            self._land(now)
        elif self._open:
            self._owner.gained(choice)  # the prefill worker has yet to report its figures
        else:
            self._land(now)

    def _land(self, now: float) -> None:
        first, second = self._prefill_timings, self._decode_timings
        one = self._prefill is None
        prefill, decode = self._prefill_info, self._decode_info
        self.choice.served_by = ServedBy(
            queue_s=(second if one else first).queue_s,
            prefill_s=(second if one else first).prefill_s,
            transfer_s=second.transfer_s or first.transfer_s,
            decode_s=second.decode_s or max(0.0, now - self._first_at if self._first_at else 0.0),
            decode_queue_s=second.queue_s,
            prefill_worker=prefill.worker_id,
            prefill_pid=prefill.pid,
            decode_worker=decode.worker_id,
            decode_pid=decode.pid,
            cached_from=self.choice.cached_from,
        )
        self._owner.landed(self.choice)

    def _fail(self, link: Link, reason: str) -> None:
        self._abandon(ApiError(500, f"{self._name(link)} failed the request: {reason}", code="worker_error"))

    def _name(self, link: Link) -> str:
        info = self._prefill_info if link is self._prefill else self._decode_info
        return f"{info.role} worker {info.worker_id}"

    def _abandon(self, error: ApiError) -> None:
        self.cancel()
        self._owner.failed(error)
