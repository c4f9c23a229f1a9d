"""The table of workers: a connection to each, its figures, and the sequences it holds for this router."""

import asyncio
import itertools
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from router.relay.costs import Costs
from router.relay.finding import Place, find
from router.relay.fleet import Fleet, Roster, Standing, WorkerState, standing
from router.relay.leg import Leg
from router.relay.policy import Held
from router.relay.prefixes import Candidates, Holder, PrefixIndex
from wire.codec import CLUSTER, WireError
from wire.handshake import call
from wire.protocol import (
    Abort,
    Attach,
    Drain,
    Find,
    Found,
    Hello,
    Load,
    Mark,
    Park,
    Parked,
    PeerRef,
    Pin,
    Role,
    StepOutputs,
    Submit,
    Tier,
    Unpin,
    WorkerInfo,
)
from wire.tls import connect, tls

_log = logging.getLogger(__name__)
TIERS: tuple[Tier, ...] = get_args(Tier)
_CONNECT_S = 5.0
_BACKOFF_S = (0.05, 2.0)


@dataclass(frozen=True, slots=True)
class ListedWorker:
    """A worker discovery knows of: where its leader listens and which pool it is in."""

    ref: PeerRef
    role: Role


@dataclass(frozen=True, slots=True)
class KeptAt:
    """A snapshot that some worker keeps: its tokens, the nearest tier it lies in, and its bytes there."""

    position: int
    tier: Tier
    bytes: int


class WorkerLink:
    """The connection to one worker, made anew while the worker is listed.

    listed: whether it takes new requests; one that is not any more serves its streams to their end.
    """

    def __init__(
        self,
        listed: ListedWorker,
        router_name: str,
        secret: str,
        on_live: Callable[[], None],
        changed: "Callable[[WorkerLink], None]",
        prefixes: PrefixIndex,
        costs: Costs,
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
        self._router_name = router_name
        self._secret = secret
        self._on_live = on_live
        self._legs: dict[str, Leg] = {}  # by request id
        self._finding: dict[bytes, list[Callable[[Found | None], None]]] = {}  # who waits for what is under a key
        self._calls = itertools.count()
        self._parking: dict[int, asyncio.Future[str | None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reset()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link {self.ref.worker_id}")

    @property
    def live(self) -> bool:
        """Whether it takes new requests now."""
        return self.connected and self.listed is not None and not self._retired

    @property
    def over(self) -> bool:
        """Whether nothing will come of it any more."""
        return self._task.done()

    @property
    def in_flight(self) -> int:
        """This router's sequences in the worker."""
        return len(self._legs)

    @property
    def state(self) -> Literal["live", "draining", "connecting"]:
        """In words."""
        if not self.connected:
            return "connecting"
        return "live" if self.live else "draining"

    def snapshot(self) -> WorkerState:
        """Return the worker's figures, with what it has not seen yet."""
        return WorkerState(self.info, self.load, len(self._unseen), self._unseen_tokens, self._unseen_work)

    def standing(self) -> Standing:
        """What its figures say to the policy."""
        return standing(self.snapshot(), self._costs)

    def submit(self, message: Submit, leg: Leg, work: int) -> None:
        """Send, and from now on give the leg the request's outputs. work: tokens that the worker is to compute."""
        self._legs[message.request_id] = leg
        tokens = len(message.token_ids)
        self._unseen.append((tokens, work))
        self._unseen_tokens += tokens
        self._unseen_work += work
        self._changed(self)
        self._send(message)

    def abort(self, message: Abort) -> None:
        """Send."""
        self._send(message)

    def find(self, message: Find, answer: Callable[[Found | None], None]) -> None:
        """Ask, and call with the answer; with None if the connection ends before."""
        self._finding.setdefault(message.key, []).append(answer)
        self._send(message)

    def attach(self, message: Attach, leg: Leg) -> None:
        """Take a request over, and from now on give the leg its outputs."""
        self._legs[message.request_id] = leg
        self._send(message)

    def tell(self, message: Pin | Unpin | Drain) -> None:
        """Send."""
        self._send(message)

    async def park(self, mark: Mark) -> str | None:
        """Have a snapshot taken off the device; why it stays, if so."""
        call = next(self._calls)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._parking[call] = answer
        self._send(Park(call, mark))
        try:
            return await answer
        finally:
            del self._parking[call]

    def forget(self, request_id: str) -> None:
        """Give the request's leg no more outputs."""
        self._legs.pop(request_id, None)
        if self.listed is None and not self._legs:
            self._task.cancel()

    def retire(self) -> None:
        """The worker says that it is to end: no new requests, though it may be listed yet."""
        self._retired = True
        self._changed(self)

    def unlist(self) -> None:
        """No new requests; leave when the last stream is over."""
        self.listed = None
        self._changed(self)
        if not self._legs:
            self._task.cancel()

    async def close(self) -> None:
        """Leave now; streams are lost."""
        self.listed = None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _reset(self) -> None:
        self._seen = 0
        self._unseen: deque[tuple[int, int]] = deque()  # tokens, and those of them to be computed
        self._unseen_tokens = 0
        self._unseen_work = 0
        self._unsent: list[bytes] = []

    def _send(self, message: Submit | Find | Attach | Abort | Pin | Unpin | Park | Drain) -> None:
        # What is sent in one turn of the loop leaves in one write: each costs a system call, and wakes the worker.
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(CLUSTER.encode(message))

    def _flush(self) -> None:
        unsent, self._unsent = b"".join(self._unsent), []
        # Closing: the reader is about to report it, and loses the streams.
        if unsent and self._writer is not None and not self._writer.is_closing():
            self._writer.write(unsent)

    async def _run(self) -> None:
        pause, longest = _BACKOFF_S
        while self.listed is not None:
            try:
                await self._serve()
            except Exception as error:  # whatever it was, the worker is tried again while it is listed
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
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
            _detect_dead_host(writer.get_extra_info("socket"))
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
        self.info = info
        self._holder = Holder(info.worker_id)
        self.load = Load(0, 0, 0, info.pages, info.slots, 0, 0.0)
        self.connected = True
        self._changed(self)
        if self.listed is not None:
            self._on_live()
        while True:
            message = await CLUSTER.read(reader)
            if isinstance(message, Parked):
                self._parked(message.call, message.reason)
                continue
            if isinstance(message, Found):
                for answer in self._finding.pop(message.key, []):
                    answer(message)
                continue
            if not isinstance(message, StepOutputs):
                raise WireError(f"{type(message).__name__} is no message from a worker to a router")
            self._step(message)

    def _step(self, message: StepOutputs) -> None:
        self.load = message.load
        if message.kept:
            self._prefixes.update(self._holder, message.kept)
        newly = message.seen - self._seen
        if newly > len(self._unseen):
            raise WireError(f"it has seen {newly} new requests of {len(self._unseen)} sent")
        for _ in range(newly):
            tokens, work = self._unseen.popleft()
            self._unseen_tokens -= tokens
            self._unseen_work -= work
        self._seen = message.seen
        self._changed(self)
        now = time.monotonic()
        legs = self._legs
        for output in message.outputs:
            leg = legs.get(output.request_id)
            if leg is None:
                continue
            try:
                leg.stream.receive(leg, output, now)
            except Exception as error:  # one request's trouble is not the connection's
                _log.exception("request %s", output.request_id)
                leg.stream.broke(error)

    def _parked(self, call: int, reason: str | None) -> None:
        answer = self._parking.get(call)
        if answer is not None and not answer.done():
            answer.set_result(reason)

    def _lose(self) -> None:
        self.connected = False
        self._changed(self)
        self._prefixes.leave(self._holder)
        finding, self._finding = self._finding, {}
        for answers in finding.values():
            for answer in answers:
                answer(None)
        for number in self._parking:  # what its device held is gone
            self._parked(number, None)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        lost, self._legs = self._legs, {}
        now = time.monotonic()
        for leg in lost.values():
            leg.lost(now, alone=len(lost) == 1)


class WorkerTable:
    """All workers this router knows of.

    on_live: called when one begins to take requests. on_load: called when the figures of one have changed.
    """

    def __init__(self, router_name: str, secret: str, costs: Costs) -> None:
        """TlsError if connections are to be encrypted and can't be."""
        tls()
        self._router_name = router_name
        self._secret = secret
        self.costs = costs
        self._prefixes = PrefixIndex()
        self._roster = Roster(costs)
        self._changed: set[WorkerLink] = set()  # since the roster was made
        self._links: dict[str, WorkerLink] = {}
        self._leaving: list[WorkerLink] = []
        self.on_live: Callable[[], None] = lambda: None
        self.on_load: Callable[[], None] = lambda: None

    async def update(self, listed: Sequence[ListedWorker]) -> None:
        """Discovery's full list. New ones are connected to; one gone from it takes no new requests."""
        wanted = {w.ref.worker_id: w for w in listed}
        for worker_id, link in list(self._links.items()):
            if wanted.get(worker_id) != link.listed:
                link.unlist()
                self._leaving.append(self._links.pop(worker_id))
        for worker_id, worker in wanted.items():
            if worker_id not in self._links:
                self._links[worker_id] = WorkerLink(
                    worker, self._router_name, self._secret, self._came, self._change, self._prefixes, self.costs
                )
        self._leaving = [link for link in self._leaving if not link.over]

    async def close(self) -> None:
        """Leave all; streams are lost."""
        links, self._links, self._leaving = self.links(), {}, []
        await asyncio.gather(*(link.close() for link in links))

    def _came(self) -> None:
        self.on_live()

    def _change(self, link: WorkerLink) -> None:
        self._changed.add(link)
        self.on_load()

    def links(self) -> list[WorkerLink]:
        """All, those that are leaving too."""
        return [*self._links.values(), *(link for link in self._leaving if not link.over)]

    async def find(self, key: bytes) -> Place | None:
        """The decode worker that has what was asked under a key."""
        links = [(w, link) for w, link in self._links.items() if link.live and link.role == "decode"]
        return await find(links, key)

    def live_link(self, worker_id: str) -> WorkerLink | None:
        """Return the link to a live worker by its id; None if there is none."""
        link = self._links.get(worker_id)
        return link if link is not None and link.live else None

    def link(self, worker_id: str) -> WorkerLink:
        """Return the link to a listed worker by its id; KeyError if it is not listed."""
        return self._links[worker_id]

    def snapshot(self) -> list[WorkerState]:
        """Return the figures of all live workers."""
        return [link.snapshot() for link in self._links.values() if link.live]

    def fleet(self, weights_id: str | None = None) -> Fleet:
        """The live ones, for the policy; with `weights_id` those that serve these weights."""
        for link in self._changed:
            current = self._links.get(link.ref.worker_id)
            if link.live:
                self._roster.put(link.standing())
            elif current is None or current is link or not current.live:
                self._roster.drop(link.ref.worker_id)
        self._changed.clear()
        return self._roster.fleet(weights_id)

    def held(self, of: Candidates) -> dict[str, Held]:
        """What each worker keeps of a prompt, by its id."""
        return self._prefixes.held(of)

    def kept(self, marks: Sequence[Mark]) -> KeptAt | None:
        """The longest of these snapshots that a live worker keeps, where it lies nearest."""
        for mark in marks:
            found = [(tier, link.info) for link, tier in self._keepers(mark)]
            if found:
                tier, info = min(found, key=lambda pair: TIERS.index(pair[0]))
                return KeptAt(mark.position, tier, info.state_bytes + mark.position * info.token_bytes)
        return None

    def _keepers(self, mark: Mark) -> list[tuple[WorkerLink, Tier]]:
        """The live workers that keep a snapshot, and in which tier."""
        tiers = self._prefixes.tiers(mark)
        return [(link, tiers[w]) for w, link in self._links.items() if link.live and w in tiers]

    def tell_all(self, message: Pin | Unpin) -> None:
        """Tell every live worker."""
        for link in self._links.values():
            if link.live:
                link.tell(message)

    def drain(self, worker_id: str) -> bool:
        """Tell a worker to end; False if there is no live one of that id."""
        link = self._links.get(worker_id)
        if link is None or not link.live:
            return False
        link.tell(Drain())
        return True

    async def park(self, mark: Mark) -> list[str | None]:
        """Have every worker take a snapshot off its device: of each that had it there, why it stays, if so."""
        there = [link for link, tier in self._keepers(mark) if tier == "device"]
        return list(await asyncio.gather(*(link.park(mark) for link in there)))

    def live(self) -> dict[Role, int]:
        """How many of each pool are live."""
        count: dict[Role, int] = {"prefill": 0, "decode": 0}
        for link in self._links.values():
            count[link.role] += link.live
        return count

    def infos(self) -> Iterable[WorkerInfo]:
        """What the live ones are."""
        return (link.info for link in self._links.values() if link.live)


def _detect_dead_host(sock: socket.socket) -> None:
    """A process's death ends the stream at once; a host's sends nothing, so ask it every second."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
