"""A leg: one worker's share of a sequence."""

from __future__ import annotations

from typing import Literal, Protocol

from router.errors import ApiError
from router.relay.recovery import Loss
from wire.protocol import Abort, Attach, Move, SeqOutput, Submit, Timings, WorkerInfo

Stage = Literal["prefill", "decode"]
_NONE = Timings()


class Link(Protocol):
    """A worker's connection, as a leg uses it."""

    info: WorkerInfo

    def submit(self, message: Submit, leg: Leg, work: int) -> None:
        """Send a request, and from now on give the leg its outputs. work: tokens that the worker is to compute."""

    def attach(self, message: Attach, leg: Leg) -> None:
        """Take a request over, and from now on give the leg its outputs."""

    def abort(self, message: Abort) -> None:
        """Send the abort to the worker."""

    def move(self, message: Move) -> None:
        """Have the worker give the request up to another one."""

    def forget(self, request_id: str) -> None:
        """Give the request's leg no more outputs."""

    def retire(self) -> None:
        """Send the worker no more requests, because it is about to end."""


class Stream(Protocol):
    """The sequence a leg belongs to."""

    def receive(self, leg: Leg, output: SeqOutput, now: float) -> None:
        """An output of the leg's worker."""

    def lost(self, leg: Leg, now: float, how: Loss, *, alone: bool) -> None:
        """The leg's worker ended, or is silent. alone: with no other sequence of this router."""

    def broke(self, error: Exception) -> None:
        """The router failed while it handled an output."""


class Leg:
    """A sequence at one worker. stage: "prefill" hands its snapshot on, "decode" generates to the end."""

    __slots__ = ("_link", "info", "open", "request_id", "stage", "stream", "timings")

    def __init__(self, stream: Stream, link: Link, message: Submit | Attach, work: int) -> None:
        """Submit at once, or take over what another router submitted. work: tokens that the worker is to compute."""
        self.stream = stream
        self.stage: Stage = "prefill" if isinstance(message, Submit) and message.handoff else "decode"
        self.request_id = message.request_id
        # Captured now: the link may reconnect to a replacement.
        self.info = link.info
        self.timings = _NONE
        self.open = True  # whether the worker holds the request
        self._link = link
        if isinstance(message, Submit):
            link.submit(message, self, work)
        else:
            link.attach(message, self)

    @property
    def name(self) -> str:
        """The worker's name for messages."""
        return f"{self.info.role} worker {self.info.worker_id}"

    def close(self) -> None:
        """The worker no longer has the request, so there is nothing to abort."""
        self.open = False
        self._link.forget(self.request_id)

    def moved(self) -> None:
        """The worker gives its requests up, because it is about to end."""
        self._link.retire()

    def move(self) -> None:
        """Have the worker give the request up, because another one has its snapshot; harmless if it has ended."""
        if self.open:
            self._link.move(Move(self.request_id))

    def cancel(self) -> None:
        """Free the request's places at the worker; harmless if the worker holds nothing of it."""
        if self.open:
            self.close()
            self._link.abort(Abort(self.request_id))

    def lost(self, now: float, how: Loss, *, alone: bool) -> None:
        """Report that the worker ended or is silent. alone: whether the sequence was its only one of this router."""
        if self.open:
            self.open = False
            self.stream.lost(self, now, how, alone=alone)

    def failed(self, reason: str) -> ApiError:
        """The error that a client gets for a worker's failure."""
        return ApiError(500, f"{self.name} failed the request: {reason}", code="worker_error")
