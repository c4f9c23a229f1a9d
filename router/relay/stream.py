"""One sequence under way: puts the outputs of its workers in order, and ends at all of them whatever happens."""

from __future__ import annotations

from typing import Protocol

from router.errors import ApiError
from router.metrics import StreamTimes
from router.relay.choice import Choice, ServedBy
from router.relay.leg import Leg, Link, Stage
from wire.protocol import PeerRef, SeqOutput, Submit


class Owner(Protocol):
    """The request a stream is part of."""

    def gained(self, choice: Choice) -> None:
        """The choice has something to take."""

    def landed(self, choice: Choice) -> None:
        """The choice is whole."""

    def failed(self, error: ApiError) -> None:
        """The choice can't be finished."""


class SequenceStream:
    """A choice and its legs: one for each worker that had a part in it, in the order in which they began."""

    __slots__ = (
        "_first_at",
        "_last_at",
        "_metrics",
        "_next",
        "_owner",
        "_parked",
        "_submitted_at",
        "choice",
        "legs",
        "request_id",
    )

    def __init__(self, request_id: str, choice: Choice, owner: Owner, metrics: StreamTimes) -> None:
        self.request_id = request_id
        self.choice = choice
        self.legs: list[Leg] = []
        self._owner = owner
        self._metrics = metrics
        self._next = 0  # index of the next generated token
        self._parked: dict[int, SeqOutput] = {}  # outputs that overtook others, by index of their first token
        self._submitted_at = 0.0
        self._first_at = 0.0
        self._last_at = 0.0

    @property
    def workers(self) -> tuple[str, str]:
        """Ids of the prefill and the decode worker; the same where there is one."""
        return self._at("prefill").info.worker_id, self._at("decode").info.worker_id

    def start(self, prefill: Link | None, decode: Link, priority: int, now: float) -> None:
        """Submit to both workers at once: the decode worker may pull the first chunks while later ones compute.

        Without `prefill` the decode worker computes the prompt.
        """
        self._submitted_at = now
        prompt, sampling = self.choice.prompt.token_ids, self.choice.sampling
        source = None
        if prefill is not None:
            info = prefill.info
            source = PeerRef(info.worker_id, info.host, info.port)
            submit = Submit(self.request_id, prompt, sampling, priority, handoff=True)
            self.legs.append(Leg(self, prefill, submit))
        self.legs.append(Leg(self, decode, Submit(self.request_id, prompt, sampling, priority, source)))

    def receive(self, leg: Leg, output: SeqOutput, now: float) -> None:
        """An output of one of the legs."""
        if output.timings is not None:
            leg.timings = output.timings
        if output.cached_tokens:
            self.choice.cached_tokens = output.cached_tokens
        if output.finish is not None:
            leg.close()
            if output.finish == "handoff":
                self._handed_off(leg, now)
                return
            if output.finish == "error":
                self._abandon(leg.failed(output.error or "it gave no reason"))
                return
            if output.finish == "abort":  # another leg's worker says how it ended
                return
        if output.offset == self._next:
            self._apply(output, now)
            while self.choice.finish is None and self._parked and (later := self._parked.pop(self._next, None)):
                self._apply(later, now)
        elif output.offset > self._next:
            self._parked[output.offset] = output
        else:
            self._abandon(leg.failed(f"it sent token {output.offset} twice"))

    def lost(self, leg: Leg, now: float) -> None:
        """The connection to a leg's worker ended."""
        if self.choice.finish is not None:
            self._land(now)  # only the lost worker's figures are missing
        elif leg.stage == "decode" or self._next <= 1:  # else the snapshot had left it
            self._abandon(ApiError(503, f"{leg.name} ended while serving the request", code="worker_lost"))

    def broke(self, error: Exception) -> None:
        """The router itself failed over an output."""
        self._abandon(ApiError(500, f"internal error: {type(error).__name__}", code="internal_error"))

    def cancel(self) -> None:
        """Free whatever the workers hold of it."""
        for leg in self.legs:
            leg.cancel()

    def _handed_off(self, leg: Leg, now: float) -> None:
        if self.choice.finish is not None:
            self._land(now)
        elif self._next == 0:
            self._abandon(leg.failed("it handed the request off without its first token"))

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
        elif finish is not None and any(leg.open and leg.stage == "prefill" for leg in self.legs):
            self._owner.gained(choice)  # the prefill worker has yet to report its figures
        else:
            # Workers do not know of a stop string, and after the prompt's own token a decode worker waits for nothing.
            self.cancel()
            self._land(now)

    def _land(self, now: float) -> None:
        first, last = self._at("prefill"), self._at("decode")
        self.choice.served_by = ServedBy(
            queue_s=first.timings.queue_s,
            prefill_s=first.timings.prefill_s,
            transfer_s=last.timings.transfer_s or first.timings.transfer_s,
            decode_s=last.timings.decode_s or max(0.0, now - self._first_at if self._first_at else 0.0),
            decode_queue_s=last.timings.queue_s,
            prefill_worker=first.info.worker_id,
            prefill_pid=first.info.pid,
            decode_worker=last.info.worker_id,
            decode_pid=last.info.pid,
        )
        self._owner.landed(self.choice)

    def _at(self, stage: Stage) -> Leg:
        """The latest leg of a stage; where no prefill worker had a part, the decode worker computed the prompt."""
        return next((leg for leg in reversed(self.legs) if leg.stage == stage), self.legs[-1])

    def _abandon(self, error: ApiError) -> None:
        self.cancel()
        self._owner.failed(error)
