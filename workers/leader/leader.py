"""A worker's leader: takes requests from routers, schedules, drives the ranks, publishes tokens. It joins the parts.

One event loop, no threads. Messages are handled while the ranks compute; decisions are the scheduler's.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from wire.liveness import BEAT_S, AwakeClock
from wire.metrics.recorder import Reading
from wire.progress import Progress
from wire.protocol import (
    Header,
    Load,
    PullRefused,
    RankInfo,
    Role,
    WorkerInfo,
)  # fmt: skip
from wire.tls import listen, tls
from workers.cache.opening import Disk, open_disk
from workers.config import WorkerConfig
from workers.leader.callers import Callers
from workers.leader.clients import Clients
from workers.leader.figures import WorkerFigures
from workers.leader.files import Files
from workers.leader.grammars import GrammarDesk
from workers.leader.handoffs import HandOffs
from workers.leader.loading import LoadProgress
from workers.leader.peers import Peers
from workers.leader.ranks import Event, Launch, Ranks
from workers.leader.requests import Requests
from workers.leader.stepping import Stepping
from workers.model.config import LingConfig
from workers.model.files import weights_id
from workers.schedule.scheduler import Scheduler
from workers.schedule.step import (
    Compiled,
    FetchFailed,
    LinkLost,
    Loading,
    RankStats,
    Received,
    Sent,
    WriteFailed,
    Written,
)
from workers.sizes import layout_of, limits_of

_LOG = logging.getLogger(__name__)
_TEND_S = 60.0  # between two looks at the folder of the disk tier


class Leader:
    """One worker. `start`, then `run` until a rank ends (WorkerLost) or `close`. Made on the loop that runs it."""

    info: WorkerInfo

    def __init__(self, config: WorkerConfig, worker_id: str, role: Role) -> None:
        self._config = config
        self._worker_id = worker_id
        self._role: Role = role
        self.figures = WorkerFigures(worker_id, role)
        self._wake = asyncio.Event()
        self._clients = Clients()
        self._awake = AwakeClock(time.monotonic())
        self._ranks = Ranks(config, self._awake, self._on_event)
        self._loading = LoadProgress()
        self.on_progress: Callable[[Progress], None] = lambda progress: None
        self._draining = False
        self.on_drain: Callable[[], None] = lambda: None  # called when an operator wants the worker to end
        self._disk: Disk | None = None
        self._server: asyncio.Server | None = None

    async def start(self, launch: Launch) -> None:
        """Load the model on all ranks and listen. Bad settings raise before any rank starts."""
        tls()  # raises TlsError now, not after the ranks have loaded
        config = self._config
        folder = Path(config.model)
        model = LingConfig.load(folder, config.model_overrides)
        model.check_tp(config.tp)
        identity = await asyncio.to_thread(weights_id, folder, config.load == "synthetic", config.version)
        ready = await self._ranks.start(launch)
        pages = min(r.pages for r in ready)
        model = replace(model, drafts=all(r.drafts for r in ready))
        limits = limits_of(config, model, pages)
        self._scheduler = Scheduler(limits)
        self._disk = await asyncio.to_thread(open_disk, config, model, identity, self._scheduler.cache)
        self._grammars = GrammarDesk(self._ranks.tell_first, self._scheduler.sequences.values)
        self._server = await listen(self._serve, config.host)
        self.info = WorkerInfo(
            worker_id=self._worker_id,
            role=self._role,
            host=config.host,
            port=self._server.sockets[0].getsockname()[1],
            node=socket.gethostname(),
            pid=os.getpid(),
            weights_id=identity,
            layout=layout_of(config, model),
            vocab_size=model.vocab_size,
            page_size=config.page_size,
            pages=pages,
            slots=config.slots,
            max_model_len=limits.max_model_len,
            ranks=tuple(RankInfo(r.rank, r.pid, r.node, r.device, r.transfer_host, r.transfer_port) for r in ready),
            state_bytes=limits.cache.state_bytes,
            token_bytes=limits.cache.token_bytes,
        )
        self._handoffs = HandOffs(self._scheduler, self.info, config.handoff_timeout_s)
        handoffs, wake = self._handoffs, self._wake.set
        self._peers = Peers(
            self.info, config.secret, self._awake, handoffs.taking.linked, self._on_peer_message, self._on_peer_lost
        )
        self._requests = Requests(
            self._scheduler, handoffs, self._peers, self._grammars, self._clients, self.figures, self._load_of, wake,
            vocab=model.vocab_size, resume_s=config.resume_s,
        )  # fmt: skip
        add, drop = self._requests.add, self._requests.drop
        self._files = self._requests.files = Files(self._scheduler, self.info, model, config, add, drop, wake)
        self._callers = Callers(
            self.info, config.secret, self._scheduler, handoffs, self._requests, self._files, self._clients, wake,
            self._asked_to_drain,
        )  # fmt: skip
        self._stepping = Stepping(self._scheduler, self._ranks, handoffs, self._requests, self.figures)

    async def run(self) -> None:
        """Step while there is work; raises WorkerLost when a rank ends."""
        beside = [asyncio.create_task(self._heartbeat()), asyncio.create_task(self._tend_files())]
        try:
            while True:
                await self._wake_or_lost()
                if not await self._stepping.step(draining=self._draining):
                    self._wake.clear()
        finally:
            for task in beside:
                task.cancel()

    async def close(self) -> None:
        """End the ranks and every connection; clients see it as this worker's end."""
        if self._server is not None:
            self._server.close()
            self._peers.close()
            self._files.close()
            self._requests.close()
        self._clients.close()
        await self._ranks.close()
        if self._disk is not None:
            self._disk.close()

    def drain(self) -> None:
        """From now on answers continue at other workers, from their states here; prompts are computed to their end."""
        self._draining = True
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Whether no request is here, and nobody needs the state of one that moved."""
        scheduler = self._scheduler
        here = scheduler.sequences or len(scheduler.moving.pins)
        return not here and self._handoffs.idle and self._grammars.idle

    @property
    def load(self) -> Load:
        """The figures that routers get with the next step."""
        unreachable = self._peers.unreachable
        return structs.replace(self._scheduler.load, unreachable=unreachable) if unreachable else self._scheduler.load

    def _load_of(self) -> Load:
        return self.load

    def _asked_to_drain(self) -> None:
        self.on_drain()

    def readings(self) -> Iterator[Reading]:
        """Read all metrics of the worker."""
        if self._disk is not None:
            self.figures.disk(self._disk.foreign, self._disk.damaged)
        self.figures.cached(self._scheduler.cache)
        self.figures.drafted(self._scheduler.drafting.speculation.totals)
        self.figures.preempted(self._scheduler.preempted)
        return self.figures.read(self.info, self.load)

    # Inside

    async def _wake_or_lost(self) -> None:
        if self._wake.is_set() and not self._ranks.lost.done():
            return
        woken = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait((woken, self._ranks.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if self._ranks.lost.done():
            self._ranks.lost.result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._callers.serve(reader, writer)

    # What ranks and peers tell

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case FetchFailed():
                self._files.fetch_failed(event)
                self._requests.perform(self._handoffs.fetch_failed(event.request_id, event.peer))
            case Written():
                self._files.written(event)
            case WriteFailed() if self._files.written(event):
                pass
            case WriteFailed():
                _LOG.warning("rank %d could not write %s: %s", event.rank, event.file, event.reason)
                self._requests.perform(self._handoffs.write_failed(event.file))
            case Received():
                self._requests.perform(self._handoffs.taking.received(event.request_id, event.rank, now))
            case Sent():
                self._requests.perform(self._handoffs.giving.sent(event.request_id, event.rank, now))
            case LinkLost():
                if not event.leaving and self._peers.known(event.peer) is not None:
                    self._peers.drop_lost(event.peer, f"is out of reach of rank {event.rank}: {event.reason}")
                lost = self._handoffs.link_lost
                self._requests.perform(lost(event.peer, event.request_ids, event.reason, now, leaving=event.leaving))
            case Compiled():
                self._requests.compiled(event)
            case Loading():
                self.on_progress(self._loading.take(event, now))
            case RankStats():
                self.figures.told(event)

    def _on_peer_message(self, worker_id: str, message: Header | PullRefused) -> None:
        self._requests.perform(self._handoffs.taking.told(worker_id, message, time.monotonic()))

    def _on_peer_lost(self, worker_id: str, reason: str) -> None:
        self._requests.perform(self._handoffs.taking.peer_lost(worker_id, reason, time.monotonic()))

    # Beside the steps

    async def _heartbeat(self) -> None:
        """Send fresh figures to every client even if no step runs, and end what has waited too long."""
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            self._awake.tick(now)
            self._ranks.check()
            self._peers.check()
            self._scheduler.cache.pins.expire(now)
            for request_id in self._requests.resumable.expired(now):
                self._requests.drop(request_id)
            self._scheduler.moving.pins.expire(now)
            if overdue := self._handoffs.overdue(now):
                self._requests.perform(overdue)
            self._clients.beat(self._scheduler.steps, self.load)

    async def _tend_files(self) -> None:
        """Erase files that have expired, and take over those of workers that are gone."""
        cache = self._scheduler.cache
        while self._disk is not None:
            await asyncio.sleep(_TEND_S)
            cache.expire_files(time.monotonic())
            try:
                room = cache.budget.disk_bytes - cache.disk.bytes
                came = await asyncio.to_thread(self._disk.tend, cache.disk.take_used(), room)
                cache.take_files(came, time.monotonic())
            except OSError as error:
                _LOG.warning("the disk tier can't be tidied: %s", error)
            self._wake.set()
