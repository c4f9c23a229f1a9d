"""The connection to one worker: it sends requests and messages, and gives each leg its outputs."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from router.relay.costs import Costs
from router.relay.fleet import Standing, WorkerState, standing
from router.relay.inquiries import Inquiries
from router.relay.leg import Leg
from router.relay.prefixes import Holder, PrefixIndex
from router.relay.recovery import Loss
from router.relay.unseen import Unseen
from wire.codec import CLUSTER, WireError
from wire.handshake import call
from wire.liveness import SILENT_S, AwakeClock, detect_dead_host
from wire.protocol import (
    Abort,
    Attach,
    Drain,
    Find,
    Found,
    Hello,
    Load,
    Mark,
    Move,
    Park,
    Parked,
    PeerRef,
    Pin,
    Role,
    StepOutputs,
    Submit,
    Unpin,
    WorkerInfo,
)
from wire.tls import connect

_log = logging.getLogger(__name__)
_CONNECT_S = 5.0
_BACKOFF_S = (0.05, 2.0)


@dataclass(frozen=True, slots=True)
class ListedWorker:
    """A worker as discovery lists it: its leader's address and its pool."""

    ref: PeerRef
    role: Role


class WorkerLink:
    """The connection to one worker; while the worker is listed, a broken one is replaced.

    listed: as discovery lists the worker now; None if it no longer does. A worker that is not listed takes no new
    requests and serves its streams to their end.
    """

    def __init__(
        self,
        listed: ListedWorker,
        router_name: str,
        secret: str,
        on_live: Callable[[], None],
        changed: "Callable[[WorkerLink], None]",
        ended: "Callable[[WorkerLink], None]",
        found: "Callable[[WorkerLink], None]",
        prefixes: PrefixIndex,
        costs: Costs,
        awake: AwakeClock,
    ) -> None:
        self.listed: ListedWorker | None = listed
        self.ref = listed.ref
        self.role = listed.role
        self.connected = False
        self.info: WorkerInfo
        self.load: Load
        self.problem = "connecting"
        self._retired = False
        self._prefixes = prefixes
        self._holder = Holder(self.ref.worker_id)
        self._costs = costs
        self._changed = changed
        self._ended = ended
        self._found = found
        self._router_name = router_name
        self._secret = secret
        self._on_live = on_live
        self._legs: dict[str, Leg] = {}  # by request id
        self._inquiries = Inquiries()
        self._writer: asyncio.StreamWriter | None = None
        self._awake = awake
        self._heard = awake.s  # when the last message came
        self._silent = False  # until it tells of itself again
        # Another worker of its node ended with sequences, and this one has said nothing since: it may have ended too.
        self.in_doubt = False
        self._reset()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link {self.ref.worker_id}")

    @property
    def live(self) -> bool:
        """Whether the worker takes new requests now."""
        return self.connected and self.listed is not None and not (self._retired or self._silent)

    @property
    def over(self) -> bool:
        """Whether the link has ended for good."""
        return self._task.done()

    @property
    def in_flight(self) -> int:
        """The number of this router's sequences at the worker."""
        return len(self._legs)

    @property
    def state(self) -> Literal["live", "draining", "connecting"]:
        """The link's state as `/status` shows it."""
        if not self.connected:
            return "connecting"
        return "live" if self.live else "draining"

    def snapshot(self) -> WorkerState:
        """Return the worker's figures and the requests that it has not seen yet."""
        return WorkerState(self.info, self.load, len(self._unseen), self._unseen.tokens, self._unseen.work)

    def standing(self) -> Standing:
        """Return the worker's standing for the policy."""
        return standing(self.snapshot(), self._costs)

    def submit(self, message: Submit, leg: Leg, work: int) -> None:
        """Send a request, and from now on give the leg its outputs. work: tokens that the worker is to compute."""
        self._legs[message.request_id] = leg
        self._unseen.add(len(message.token_ids), work)
        self._changed(self)
        self._send(message)

    def abort(self, message: Abort) -> None:
        """Send."""
        self._send(message)

    def move(self, message: Move) -> None:
        """Send."""
        self._send(message)

    def find(self, message: Find, answer: Callable[[Found | None], None]) -> None:
        """Ask the worker, and call `answer` with its answer, or with None if the connection ends first."""
        self._inquiries.find(message.key, answer)
        self._send(message)

    def attach(self, message: Attach, leg: Leg) -> None:
        """Take a request over, and from now on give the leg its outputs."""
        self._legs[message.request_id] = leg
        self._send(message)

    def tell(self, message: Pin | Unpin | Drain) -> None:
        """Send."""
        self._send(message)

    async def park(self, mark: Mark) -> str | None:
        """Have a snapshot moved off the device. Returns the reason if it stays there."""
        call, answer = self._inquiries.park()
        self._send(Park(call, mark))
        return await answer

    def forget(self, request_id: str) -> None:
        """Give the request's leg no more outputs."""
        self._legs.pop(request_id, None)
        if self.listed is None and not self._legs:
            self._task.cancel()

    def check(self) -> None:
        """Give the connection up if the worker has sent nothing for too long."""
        if self.connected and self._awake.s - self._heard > SILENT_S and self._writer is not None:
            self._silent = True
            self._changed(self)
            self._writer.transport.abort()

    def retire(self) -> None:
        """The worker is about to end: send it no new requests, even while it is still listed."""
        self._retired = True
        self._changed(self)

    def unlist(self) -> None:
        """The worker is no longer listed: send no new requests, and disconnect when the last stream is over."""
        self.listed = None
        self._changed(self)
        if not self._legs:
            self._task.cancel()

    async def close(self) -> None:
        """Disconnect now; streams are lost."""
        self.listed = None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _reset(self) -> None:
        self._unseen = Unseen()
        self._unsent: list[bytes] = []

    def _send(self, message: Submit | Find | Attach | Abort | Move | Pin | Unpin | Park | Drain) -> None:
        # All messages of one turn of the loop are sent in one write, because each write costs a system call and wakes
        # the worker.
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(CLUSTER.encode(message))

    def _flush(self) -> None:
        unsent, self._unsent = b"".join(self._unsent), []
        # If the writer is closing, the reader is about to report it, and the streams are lost.
        if unsent and self._writer is not None and not self._writer.is_closing():
            self._writer.write(unsent)

    async def _run(self) -> None:
        pause, longest = _BACKOFF_S
        while self.listed is not None:
            try:
                await self._serve()
            except Exception as error:  # after any error the worker is tried again while it is listed
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                if self.connected and self._silent:
                    reason = f"it said nothing for {SILENT_S:g} s"
                if self.connected:
                    _log.warning("worker %s ended: %s", self.ref.worker_id, reason)
                    pause = _BACKOFF_S[0]
                self.problem = reason
            finally:
                self._lose()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    async def _serve(self) -> None:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await connect(self.ref.host, self.ref.port)
            self._writer = writer
            detect_dead_host(writer.get_extra_info("socket"))
            await call(reader, writer, self._secret)
            writer.write(CLUSTER.encode(Hello(self._router_name, "router")))
            info = await CLUSTER.read(reader)
        if not isinstance(info, WorkerInfo):
            raise WireError(f"{self.ref.host}:{self.ref.port} began with {type(info).__name__}, not WorkerInfo")
        if (info.worker_id, info.role) != (self.ref.worker_id, self.role):
            raise WireError(
                f"at {self.ref.host}:{self.ref.port} is {info.role} worker {info.worker_id}, "
                f"not {self.role} worker {self.ref.worker_id}"
            )
        self._reset()
        self._retired = False
        self._heard = self._awake.s
        self.in_doubt = False
        self.info = info
        self._holder = Holder(info.worker_id)
        self.load = Load(0, 0, 0, info.pages, info.slots, 0, 0.0)
        self.connected = True
        self._changed(self)
        if self.live:
            self._on_live()
        while True:
            message = await CLUSTER.read(reader)
            self._heard = self._awake.s
            if self.in_doubt:
                self.in_doubt = False
                self._on_live()
            if isinstance(message, Parked):
                self._inquiries.parked(message.call, message.reason)
            elif isinstance(message, Found):
                self._inquiries.found(message)
            elif isinstance(message, StepOutputs):
                self._step(message)
            else:
                raise WireError(f"{type(message).__name__} is no message from a worker to a router")

    def _step(self, message: StepOutputs) -> None:
        self.load = message.load
        if message.kept and self._prefixes.update(self._holder, message.kept):
            self._found(self)
        self._unseen.update(message.seen)
        self._changed(self)
        if self._silent:
            self._silent = False
            if self.live:
                self._on_live()
        now = time.monotonic()
        legs = self._legs
        for output in message.outputs:
            leg = legs.get(output.request_id)
            if leg is None:
                continue
            try:
                leg.stream.receive(leg, output, now)
            except Exception as error:  # a fault in one request must not end the connection
                _log.exception("request %s", output.request_id)
                leg.stream.broke(error)

    def _lose(self) -> None:
        self.connected = False
        self._changed(self)
        self._prefixes.leave(self._holder)
        self._inquiries.lose()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        lost, self._legs = self._legs, {}
        how: Loss = "silence" if self._silent else "node" if self.in_doubt else "death"
        if self.in_doubt:
            self.in_doubt = False
            self._on_live()
        if lost and how != "silence":
            self._ended(self)
        now = time.monotonic()
        for leg in lost.values():
            leg.lost(now, how, alone=len(lost) == 1)
