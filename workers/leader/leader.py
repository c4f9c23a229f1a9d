"""A worker's leader: takes requests from routers, schedules, drives the ranks, publishes tokens.

One event loop, no threads. Messages are handled while the ranks compute; decisions are the scheduler's.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from wire.codec import CLUSTER, WireError
from wire.handshake import accept
from wire.liveness import BEAT_S, AwakeClock, detect_dead_host
from wire.metrics.recorder import Reading
from wire.progress import Progress
from wire.protocol import (
    Abort,
    Attach,
    CancelPull,
    Drain,
    Find,
    Found,
    Header,
    Hello,
    KeptEvent,
    Load,
    Move,
    Park,
    Parked,
    PeerRef,
    Pin,
    Pull,
    PullRefused,
    RankInfo,
    Role,
    SeqOutput,
    Submit,
    Timings,
    Unpin,
    WorkerInfo,
)  # fmt: skip
from wire.tls import listen, tls
from workers.cache.kept import Kept
from workers.cache.opening import Disk, open_disk
from workers.config import WorkerConfig
from workers.leader.actions import Action, Add, Arrived, Ended, Failed, Told, ToPeer, ToPuller
from workers.leader.clients import Client, Clients
from workers.leader.figures import UnderWay, WorkerFigures
from workers.leader.files import Files
from workers.leader.grammars import GrammarDesk
from workers.leader.handoffs import HandOffs
from workers.leader.intake import refusal, sequence_of
from workers.leader.loading import LoadProgress
from workers.leader.peers import PeerRefused, Peers
from workers.leader.ranks import Event, Launch, Ranks
from workers.leader.resumable import Resumable
from workers.model.config import LingConfig
from workers.model.files import weights_id
from workers.schedule.builder import InFlight
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
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
        self._resumable = Resumable(config.resume_s)
        self._awake = AwakeClock(time.monotonic())
        self._ranks = Ranks(config, self._awake, self._on_event)
        self._loading = LoadProgress()
        self.on_progress: Callable[[Progress], None] = lambda progress: None
        self._draining = False
        self.on_drain: Callable[[], None] = lambda: None  # called when an operator wants the worker to end
        self._disk: Disk | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._next: UnderWay | None = None  # the ranks have it already
        self._back: float | None = None  # when the latest result came; None once there is nothing to do
        self._unpublished: list[SeqOutput] = []  # of the latest step: sent once the ranks have the next one

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
        self._scheduler.cache.on_change = lambda kept: self._clients.kept(self._event_of(kept))
        self._grammars = GrammarDesk(self._ranks.tell_first, self._scheduler.sequences.values)
        self._vocab = model.vocab_size
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
        self._files = Files(self._scheduler, self.info, model, config, self._add, self._drop, self._wake.set)
        self._peers = Peers(
            self.info, config.secret, self._awake, self._handoffs.linked, self._on_peer_message, self._on_peer_lost
        )

    async def run(self) -> None:
        """Step while there is work; raises WorkerLost when a rank ends."""
        beside = [asyncio.create_task(self._heartbeat()), asyncio.create_task(self._tend_files())]
        try:
            while True:
                await self._wake_or_lost()
                await self._step()
        finally:
            for task in beside:
                task.cancel()

    async def close(self) -> None:
        """End the ranks and every connection; clients see it as this worker's end."""
        if self._server is not None:
            self._server.close()
            self._peers.close()
            self._files.close()
        for task in self._tasks:
            task.cancel()
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

    def readings(self) -> Iterator[Reading]:
        """Read all metrics of the worker."""
        if self._disk is not None:
            self.figures.disk(self._disk.foreign, self._disk.damaged)
        self.figures.cached(self._scheduler.cache)
        self.figures.drafted(self._scheduler.drafting.speculation.totals)
        self.figures.preempted(self._scheduler.preempted)
        return self.figures.read(self.info, self.load)

    # Stepping

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

    async def _step(self) -> None:
        under_way, self._next = self._next, None
        if under_way is None:
            now = time.monotonic()
            if self._draining:
                self._perform(self._handoffs.move_away(now))
            under_way = self._send(self._scheduler.plan(now), now)
            if under_way is not None and self._back is not None:
                under_way = replace(under_way, idle_s=under_way.begun - self._back)
        if under_way is None:
            self._back = None
            self._publish([])
            self._wake.clear()
            return
        # Done while the ranks compute, so that they never wait for it.
        self._publish([])
        ahead = None
        if not self._draining:  # else the next step waits for the results, for sequences move between two steps
            now = time.monotonic()
            planned = self._scheduler.plan_ahead(under_way.step, now)
            ahead = self._send(planned, now) if planned is not None else None
        result = await self._ranks.result()
        back = self._back = time.monotonic()
        outputs = self._scheduler.update(under_way.step, result, back)
        self._unpublished += outputs
        if ahead is not None:
            self._next = replace(ahead, step=self._scheduler.follow(ahead.step, under_way.step, result), begun=back)
        plan = under_way.step.plan
        self.figures.stepped(under_way, sum(map(len, result.tokens)), back, time.monotonic())
        self._perform(self._handoffs.stepped(outputs, plan.exports, back))

    def _send(self, step: InFlight, began: float) -> UnderWay | None:
        """Give the ranks a step, and peers what it asks of them; None if there is nothing to do."""
        plan = self._handoffs.with_links(step.plan)
        if plan.empty:
            return None
        self._ranks.send(plan)
        sent = time.monotonic()
        self._perform(self._handoffs.planned(plan, sent))
        return UnderWay(step, sent - began, sent)

    def _perform(self, actions: Iterable[Action]) -> None:
        """Do what an event of a hand-off asks for."""
        for action in actions:
            match action:
                case ToPuller():
                    action.puller.tell(action.message)
                case ToPeer():
                    if peer := self._peers.known(action.worker_id):
                        peer.send(action.message)
                case Add():
                    self._add(action.seq)
                case Failed():
                    self.figures.transfer_failed(action.why)
                case Arrived():
                    self.figures.transferred(action.seconds)
                case Ended() | Told():
                    self._publish([action.output])
        self._wake.set()

    # Routers and decode workers that call

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client: Client | None = None
        try:
            detect_dead_host(writer.get_extra_info("socket"))
            await accept(reader, writer, self._config.secret)
            hello = await CLUSTER.read(reader)
            if not isinstance(hello, Hello):
                raise WireError(f"the first message must be Hello, not {type(hello).__name__}")
            if hello.kind == "file":
                await self._files.serve(reader, writer)
                return
            client = Client(hello.name, hello.kind, writer)
            self._clients.join(client)
            if hello.kind == "worker":
                self._handoffs.puller_joined(client)
            client.tell(self.info)
            client.kept.extend(map(self._event_of, self._scheduler.cache.index))
            while True:
                self._handle(client, await CLUSTER.read(reader))
        except (OSError, EOFError, WireError):
            pass
        finally:
            writer.close()
            if client is not None:
                self._forget(client)

    def _handle(self, client: Client, message: object) -> None:
        match message:
            case Submit():
                client.seen += 1
                self._submit(client, message)
            case Pull():
                self._perform(self._handoffs.asked(client, message, time.monotonic()))
            case Find():
                entry = self._resumable.find(message.key)
                client.tell(Found(message.key, entry.request_id, entry.body) if entry else Found(message.key, "", b""))
            case Attach():
                self._attach(client, message.request_id)
            case Abort():
                self._abort(client, message.request_id)
            case CancelPull(kept=True):
                self._handoffs.kept_cancelled(message.request_id)
            case CancelPull():
                self._release(message.request_id)
                self._perform(self._handoffs.cancelled(message.request_id))
            case Pin() | Unpin() | Park():
                self._session(client, message)
            case Move():
                self._handoffs.copied(message.request_id)
            case Drain():
                self.on_drain()
            case _:
                raise WireError(f"{type(message).__name__} does not come from a router or a decode worker")
        self._wake.set()

    def _session(self, client: Client, message: Pin | Unpin | Park) -> None:
        now = time.monotonic()
        match message:
            case Pin():
                self._scheduler.pin(message.session, message.marks, now, now + message.ttl_s, again=message.again)
            case Unpin():
                self._scheduler.unpin(message.session)
            case Park():
                client.tell(Parked(message.call, self._scheduler.park(message.mark, now)))

    def _submit(self, client: Client, message: Submit) -> None:
        seq = sequence_of(message, time.monotonic())
        reason = refusal(seq, self._scheduler.limits, self._vocab)
        if reason is None and self._is_here(seq.request_id):
            reason = f"request {seq.request_id} is here already"
        if reason is not None:
            client.outbox.append(SeqOutput(seq.request_id, 0, finish="error", error=reason))
            client.flush(self._scheduler.steps, self.load)
            return
        self._clients.own(seq.request_id, client)
        if (stale := self._resumable.submitted(message)) is not None:
            self._drop(stale)
        if self._handoffs.must_connect(seq):
            source = message.source or message.prefix.source
            assert source is not None
            self._spawn(self._join(seq, source))
        else:
            self._add(seq)

    def _is_here(self, request_id: str) -> bool:
        return any(request_id in here for here in (self._scheduler.sequences, self._handoffs, self._grammars))

    async def _join(self, seq: Sequence, source: PeerRef) -> None:
        reason, mismatch = None, False
        try:
            await self._peers.connect(source)
        except PeerRefused as error:
            reason, mismatch = str(error), error.mismatch
        self._perform(self._handoffs.joined(seq, reason, mismatch=mismatch))

    def _add(self, seq: Sequence) -> None:
        if self._grammars.holds_back(seq):
            return
        self._scheduler.add(seq)
        self._perform(self._handoffs.added(seq))

    def _event_of(self, kept: Kept) -> KeptEvent:
        return KeptEvent(kept.position, kept.digest, self._scheduler.cache.tier(kept))

    def _forget(self, client: Client) -> None:
        """A connection ended: drop its requests, except those that may be resumed."""
        now = time.monotonic()
        for request_id in self._clients.leave(client):
            if self._resumable.orphaned(request_id, now):
                self._clients.disown(request_id)
            else:
                self._drop(request_id)
        self._perform(self._handoffs.puller_left(client, time.monotonic()))

    def _attach(self, client: Client, request_id: str) -> None:
        """A router takes a request over, from another one that may still be there."""
        entry = self._resumable.attach(request_id, time.monotonic())
        before = self._clients.owner(request_id)
        if before is not None and before is not client:
            error = "its client has come back through another router"
            before.outbox.append(SeqOutput(request_id, 0, finish="error", error=error))
            before.flush(self._scheduler.steps, self.load)
        tokens = tuple(entry.tokens) if entry is not None else ()
        if entry is not None and (entry.running or entry.whole is not None):
            client.outbox.append(SeqOutput(request_id, 0, tokens, finish=entry.whole, timings=Timings()))
        else:  # it continues at another worker, after these tokens
            client.outbox.append(SeqOutput(request_id, 0, tokens))
            reason = "it is not computed here any more"
            client.outbox.append(SeqOutput(request_id, len(tokens), finish="error", error=reason, retry=True))
        if entry is not None and entry.running:
            self._clients.own(request_id, client)
        client.flush(self._scheduler.steps, self.load)

    def _abort(self, client: Client, request_id: str) -> None:
        """A router gives a request up; ignored if another router has taken it over."""
        if self._clients.owner(request_id) in (None, client):
            self._resumable.dropped(request_id, time.monotonic())
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        """Free a request without an output, because its owner gave it up."""
        self._release(request_id)
        self._perform(self._handoffs.drop(request_id))

    def _release(self, request_id: str) -> None:
        self._clients.disown(request_id)
        self._grammars.drop(request_id)

    # Ranks and peers

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case FetchFailed():
                self._files.fetch_failed(event)
                self._perform(self._handoffs.fetch_failed(event.request_id, event.peer))
            case Written():
                self._files.written(event)
            case WriteFailed() if self._files.written(event):
                pass
            case WriteFailed():
                _LOG.warning("rank %d could not write %s: %s", event.rank, event.file, event.reason)
                self._perform(self._handoffs.write_failed(event.file))
            case Received():
                self._perform(self._handoffs.received(event.request_id, event.rank, now))
            case Sent():
                self._perform(self._handoffs.sent(event.request_id, event.rank, now))
            case LinkLost():
                if not event.leaving and self._peers.known(event.peer) is not None:
                    self._peers.drop_lost(event.peer, f"is out of reach of rank {event.rank}: {event.reason}")
                lost = self._handoffs.link_lost
                self._perform(lost(event.peer, event.request_ids, event.reason, now, leaving=event.leaving))
            case Compiled():
                self._on_compiled(event)
            case Loading():
                self.on_progress(self._loading.take(event, now))
            case RankStats():
                self.figures.told(event)

    def _on_compiled(self, event: Compiled) -> None:
        for seq in self._grammars.compiled(event):
            if event.error is None:
                self._add(seq)
            else:
                output = SeqOutput(seq.request_id, 0, finish="error", error=event.error, unservable=True)
                self._perform(self._handoffs.end(output))
        self._wake.set()

    def _on_peer_message(self, worker_id: str, message: Header | PullRefused) -> None:
        self._perform(self._handoffs.told(worker_id, message, time.monotonic()))

    def _on_peer_lost(self, worker_id: str, reason: str) -> None:
        self._perform(self._handoffs.peer_lost(worker_id, reason, time.monotonic()))

    # Towards routers

    def _publish(self, outputs: list[SeqOutput]) -> None:
        """Send outputs to their routers, after those of the latest step."""
        outputs, self._unpublished = self._unpublished + outputs, []
        self.figures.ended(outputs)
        self._files.ended(outputs)
        if self._resumable:
            now = time.monotonic()
            for output in outputs:
                self._resumable.took(output, self._generated, now)
        self._clients.publish(outputs, self._scheduler.steps, self.load)

    def _generated(self, request_id: str, count: int) -> list[int]:
        """The first generated tokens of a sequence; none if it has ended."""
        seq = self._scheduler.sequences.get(request_id)
        return list(seq.tokens[seq.prompt_tokens : seq.prompt_tokens + count]) if seq is not None else []

    async def _heartbeat(self) -> None:
        """Send fresh figures to every client even if no step runs, and end what has waited too long."""
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            self._awake.tick(now)
            self._ranks.check()
            self._peers.check()
            self._scheduler.cache.pins.expire(now)
            for request_id in self._resumable.expired(now):
                self._drop(request_id)
            self._scheduler.moving.pins.expire(now)
            if overdue := self._handoffs.overdue(now):
                self._perform(overdue)
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

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
