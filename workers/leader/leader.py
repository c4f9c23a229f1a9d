"""A worker's leader: takes requests from routers, schedules, drives the ranks, publishes tokens.

One event loop, no threads. Messages are handled while the ranks compute; decisions are the scheduler's.
"""

import asyncio
import dataclasses
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

from wire.codec import CLUSTER, WireError
from wire.handshake import accept
from wire.metrics.recorder import Reading
from wire.progress import Progress
from wire.protocol import (
    Abort,
    CancelPull,
    Header,
    Hello,
    KeptEvent,
    Load,
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
    Unpin,
    WorkerInfo,
)  # fmt: skip
from wire.tls import listen, tls
from workers.cache.kept import Kept
from workers.cache.moves import Fetch
from workers.config import WorkerConfig
from workers.leader.arrivals import Arrivals, mismatch
from workers.leader.clients import Client, Clients
from workers.leader.figures import TransferFailure, WorkerFigures
from workers.leader.grammars import GrammarDesk
from workers.leader.loading import LoadProgress
from workers.leader.peers import PeerRefused, Peers
from workers.leader.pulls import Pulls
from workers.leader.ranks import Event, Launch, Ranks
from workers.model.config import LingConfig
from workers.model.files import weights_id
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence, Source, State
from workers.schedule.step import (
    Compiled,
    Expect,
    FetchFailed,
    LinkAll,
    LinkLost,
    Loading,
    RankStats,
    Received,
    Sent,
    StepPlan,
    Unlink,
)
from workers.sizes import layout_of, limits_of

_HEARTBEAT_S = 0.2


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
        self._ranks = Ranks(config, self._on_event)
        self._loading = LoadProgress()
        self.on_progress: Callable[[Progress], None] = lambda progress: None
        self._joining: set[str] = set()  # decode requests whose prefill worker is being connected
        self._pulls = Pulls()
        self._arrivals = Arrivals(config.tp)
        self._departures: dict[str, set[int]] = defaultdict(set)
        self._links: list[LinkAll] = []
        self._unlinks: list[Unlink] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, launch: Launch) -> None:
        """Load the model on all ranks and listen. Bad settings raise before any rank starts."""
        tls()  # TlsError now, not once the ranks have loaded
        config = self._config
        folder = Path(config.model)
        model = LingConfig.load(folder, config.model_overrides)
        model.check_tp(config.tp)
        identity = await asyncio.to_thread(weights_id, folder, config.load == "synthetic", config.version)
        ready = await self._ranks.start(launch)
        pages = min(r.pages for r in ready)
        limits = limits_of(config, model, pages)
        self._scheduler = Scheduler(limits)
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
        self._peers = Peers(self.info, config.secret, self._on_link, self._on_peer_message, self._on_peer_lost)

    async def run(self) -> None:
        """Step while there is work; raises WorkerLost when a rank ends."""
        beat = asyncio.create_task(self._heartbeat())
        try:
            while True:
                await self._wake_or_lost()
                await self._step()
        finally:
            beat.cancel()

    async def close(self) -> None:
        """End the ranks and every connection; clients see it as this worker's end."""
        if self._server is not None:
            self._server.close()
            self._peers.close()
        for task in self._tasks:
            task.cancel()
        self._clients.close()
        await self._ranks.close()

    @property
    def idle(self) -> bool:
        """No request is here."""
        return not self._scheduler.sequences and not self._joining and self._grammars.idle

    @property
    def load(self) -> Load:
        """The figures that routers get with the next step."""
        return self._scheduler.load

    def readings(self) -> Iterator[Reading]:
        """Everything the worker tells of itself."""
        self.figures.cached(self._scheduler.cache)
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
        began = time.monotonic()
        step = self._scheduler.plan(began)
        plan = step.plan
        if self._links or self._unlinks:
            plan = dataclasses.replace(plan, links=tuple(self._links), unlinks=tuple(self._unlinks))
            self._links.clear()
            self._unlinks.clear()
        if plan.empty:
            self._wake.clear()
            return
        self._ranks.send(plan)
        sent = time.monotonic()
        self._send_pulls(plan)
        result = await self._ranks.result()
        back = time.monotonic()
        outputs = self._scheduler.update(step, result, back)
        self._publish(outputs)
        self.figures.stepped(plan, sum(map(len, result.tokens)), began, sent, back, time.monotonic())
        for output in outputs:
            self._after_token(output)
        for export in plan.exports:
            self._after_export(export.request_id)

    def _send_pulls(self, plan: StepPlan) -> None:
        for fetch in plan.fetches:
            self._arrivals.expect(fetch.request_id, self._header_of(fetch))
        for expect in plan.expects:
            peer = self._peers.known(expect.peer)
            if peer is not None:
                self._arrivals.expect(expect.request_id)
                peer.send(self._pull_of(expect))
            else:  # went away since it was queued
                self._fail(expect.request_id, f"prefill worker {expect.peer} went away", "peer")

    def _header_of(self, fetch: Fetch) -> Header:
        """What comes from host memory is what the index says: only the ranks' parts are to come."""
        seq = self._scheduler.sequences[fetch.request_id]
        digest = seq.known.digests.at(seq.tokens, fetch.position).hex()
        return Header(fetch.request_id, fetch.position, digest, (), self.info.layout, self.info.weights_id)

    def _pull_of(self, expect: Expect) -> Pull:
        seq = self._scheduler.sequences[expect.request_id]
        assert seq.source is not None
        known, position = seq.known, seq.source.position
        kept = known.digests.at(known.ids, position) if seq.source.kept else None
        return Pull(seq.request_id, expect.start, position, kept)

    def _after_token(self, output: SeqOutput) -> None:
        """A prompt is done: tell its decode worker, if that has pulled already."""
        seq = self._scheduler.sequences.get(output.request_id)
        if seq is None:
            self._pulls.refuse(output.request_id, "the request ended with its first token", told=True)
        elif seq.handoff and seq.peer is not None:
            self._send_header(seq, seq.peer)

    def _after_export(self, request_id: str) -> None:
        """A snapshot may be gone before the step that exported it is committed."""
        seq = self._scheduler.sequences.get(request_id)
        if seq is not None and seq.handoff and seq.gone:
            self._finish(self._scheduler.sent(request_id, time.monotonic()))

    def _send_header(self, seq: Sequence, peer: str) -> None:
        header = Header(
            request_id=seq.request_id,
            position=seq.prompt_tokens,
            token_hash=seq.known.digests.at(seq.tokens, seq.prompt_tokens).hex(),
            generated=tuple(seq.tokens[seq.prompt_tokens :]),
            layout=self.info.layout,
            weights_id=self.info.weights_id,
        )
        self._pulls.head(peer, header)

    # Routers and decode workers that call

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client: Client | None = None
        try:
            await accept(reader, writer, self._config.secret)
            hello = await CLUSTER.read(reader)
            if not isinstance(hello, Hello):
                raise WireError(f"the first message must be Hello, not {type(hello).__name__}")
            client = Client(hello.name, hello.kind, writer)
            self._clients.join(client)
            if hello.kind == "worker":
                self._pulls.join(client)
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
            case Pull(kept=bytes()):
                self._send_kept(client, message)
            case Abort():
                self._drop(message.request_id)
            case Pull():
                self._pull(client, message)
            case CancelPull(kept=True):
                self._scheduler.drop_kept(message.request_id)
            case CancelPull():
                self._pulls.drop(message.request_id)
                self._drop(message.request_id)
            case Pin():
                self._scheduler.pin(message.session, message.marks, time.monotonic() + message.ttl_s)
            case Unpin():
                self._scheduler.cache.pins.release(message.session)
            case Park():
                client.tell(Parked(message.call, self._scheduler.park(message.mark, time.monotonic())))
            case _:
                raise WireError(f"{type(message).__name__} does not come from a router or a decode worker")
        self._wake.set()

    def _submit(self, client: Client, message: Submit) -> None:
        source, prefix = message.source, message.prefix
        position, kept = len(message.token_ids), False
        if source is None and prefix.source is not None and 0 < prefix.kept_tokens < position:
            source, position, kept = prefix.source, prefix.kept_tokens, True
        seq = Sequence(
            request_id=message.request_id,
            tokens=list(message.token_ids),
            prompt_tokens=len(message.token_ids) - message.generated,
            sampling=message.sampling,
            priority=message.priority,
            order=0,
            handoff=message.handoff,
            source=Source(source.worker_id, position, kept) if source else None,
            arrived=time.monotonic(),
            scope=prefix.scope,
            warm=message.warm,
            boundaries=prefix.boundaries,
        )
        if reason := self._refusal(seq):
            client.outbox.append(SeqOutput(seq.request_id, 0, finish="error", error=reason))
            client.flush(self._scheduler.steps, self._scheduler.load)
            return
        self._clients.own(seq.request_id, client)
        if source is not None and self._peers.known(source.worker_id) is None:
            self._joining.add(seq.request_id)
            self._spawn(self._join(seq, source))
        else:
            self._add(seq)

    def _refusal(self, seq: Sequence) -> str | None:
        longest = self._scheduler.limits.max_model_len
        if not (seq.prompt_tokens > 0 and len(seq.tokens) < longest):
            return f"a prompt of {len(seq.tokens)} tokens: this worker takes 1 to {longest - 1}"
        if seq.generated and (seq.handoff or (seq.source is not None and not seq.source.kept)):
            return "a snapshot of tokens that were generated elsewhere can't be handed on; compute them here"
        if not 0 <= seq.generated < seq.sampling.max_tokens:
            return f"{seq.generated} tokens are generated of at most {seq.sampling.max_tokens}"
        if not all(0 <= t < self._vocab for t in seq.tokens):
            return f"a token id is outside the vocabulary of {self._vocab}"
        if any(seq.request_id in here for here in (self._scheduler.sequences, self._joining, self._grammars)):
            return f"request {seq.request_id} is here already"
        return None

    async def _join(self, seq: Sequence, source: PeerRef) -> None:
        try:
            await self._peers.connect(source)
        except PeerRefused as error:
            if seq.request_id in self._joining:
                self.figures.transfer_failed("peer")
            assert seq.source is not None
            if not seq.source.kept:
                if seq.request_id in self._joining:
                    self._joining.discard(seq.request_id)
                    self._end(SeqOutput(seq.request_id, 0, finish="error", error=str(error), retry=True))
                return
            seq.source, seq.missed = None, "peer"
        if seq.request_id in self._joining:
            self._joining.discard(seq.request_id)
            self._add(seq)
            self._wake.set()

    def _add(self, seq: Sequence) -> None:
        if self._grammars.holds_back(seq):
            return
        self._scheduler.add(seq)
        if seq.handoff and (puller := self._pulls.by(seq.request_id)):
            self._scheduler.pull(seq.request_id, *puller)

    def _pull(self, client: Client, pull: Pull) -> None:
        seq = self._scheduler.sequences.get(pull.request_id)
        self._pulls.ask(pull, client, time.monotonic())
        if seq is not None and self._scheduler.pull(pull.request_id, client.name, pull.have) and seq.generated:
            self._send_header(seq, client.name)

    def _send_kept(self, client: Client, pull: Pull) -> None:
        """A peer begins a sequence of its own from what is kept here."""
        assert pull.kept is not None
        if not self._scheduler.pull_kept(pull.request_id, client.name, pull.position, pull.kept, pull.have):
            client.tell(PullRefused(pull.request_id, "it is no longer kept", told=False))
            return
        info = self.info
        client.tell(Header(pull.request_id, pull.position, pull.kept.hex(), (), info.layout, info.weights_id))

    def _event_of(self, kept: Kept) -> KeptEvent:
        return KeptEvent(kept.position, kept.digest, self._scheduler.cache.tier(kept))

    def _forget(self, client: Client) -> None:
        """A connection ended: whatever was done for it has no taker."""
        for request_id in self._clients.leave(client):
            self._drop(request_id)
        if self._pulls.leave(client):
            for seq in [s for s in self._scheduler.sequences.values() if s.peer == client.name]:
                self._fail(seq.request_id, f"decode worker {client.name} went away", "peer")
        self._wake.set()

    def _drop(self, request_id: str) -> None:
        """Free a request without a word to its owner."""
        self._clients.disown(request_id)
        self._joining.discard(request_id)
        self._grammars.drop(request_id)
        self._departures.pop(request_id, None)
        seq = self._scheduler.sequences.get(request_id)
        if seq is not None:
            self._cancel_pull(seq)
            self._scheduler.remove(request_id)

    # Snapshots on the way

    def _on_link(self, info: WorkerInfo) -> None:
        self._links.append(LinkAll(info.worker_id, tuple((r.transfer_host, r.transfer_port) for r in info.ranks)))

    def _on_peer_message(self, worker_id: str, message: Header | PullRefused) -> None:
        if isinstance(message, PullRefused):
            if message.request_id in self._scheduler.pulling_from(worker_id):
                if message.told:
                    self._arrivals.drop(message.request_id)
                    self._finish(self._scheduler.call_off(message.request_id, time.monotonic()))
                else:
                    self._fail(message.request_id, message.reason, "refused")
            return
        seq = self._scheduler.sequences.get(message.request_id)
        if message.request_id not in self._arrivals or seq is None:
            return
        if reason := mismatch(seq, message, self.info):
            self._fail(seq.request_id, f"snapshot from {worker_id} refused: {reason}", "mismatch")
            return
        seq.header_at = time.monotonic()
        self._install(self._arrivals.head(message))

    def _install(self, whole: Header | None) -> None:
        if whole is None:
            return
        now = time.monotonic()
        seq = self._scheduler.sequences.get(whole.request_id)
        if seq is not None and seq.source is not None:
            self.figures.transferred(now - seq.header_at)
        self._scheduler.install(whole.request_id, whole.generated, now)
        self._wake.set()

    def _on_event(self, event: Event) -> None:
        match event:
            case FetchFailed():
                self._arrivals.drop(event.request_id)
                self._scheduler.not_coming(event.request_id, damaged=True)
                self._wake.set()
            case Received():
                self._install(self._arrivals.part(event.request_id, event.rank))
            case Compiled():
                self._on_compiled(event)
            case Sent():
                seq = self._scheduler.sequences.get(event.request_id)
                if seq is None or not seq.handoff:
                    return
                gone = self._departures[event.request_id]
                gone.add(event.rank)
                if len(gone) == self._config.tp:
                    del self._departures[event.request_id]
                    self._finish(self._scheduler.sent(event.request_id, time.monotonic()))
            case LinkLost():
                if self._peers.known(event.peer) is not None:
                    self._peers.drop_lost(event.peer, f"is out of reach of rank {event.rank}: {event.reason}")
                for request_id in event.request_ids:
                    self._fail(request_id, f"the transfer link to {event.peer} broke: {event.reason}", "link")
            case Loading():
                self.on_progress(self._loading.take(event, time.monotonic()))
            case RankStats():
                self.figures.told(event)

    def _on_compiled(self, event: Compiled) -> None:
        for seq in self._grammars.compiled(event):
            if event.error is None:
                self._add(seq)
            else:
                self._end(SeqOutput(seq.request_id, 0, finish="error", error=event.error, unservable=True))
        self._wake.set()

    def _on_peer_lost(self, worker_id: str, reason: str) -> None:
        self._unlinks.append(Unlink(worker_id))
        for request_id in self._scheduler.pulling_from(worker_id):
            self._fail(request_id, reason, "peer")
        self._wake.set()

    def _cancel_pull(self, seq: Sequence) -> None:
        self._stop_pulling(seq)
        self._pulls.refuse(seq.request_id, "the request was given up at its prefill worker", told=True)

    def _stop_pulling(self, seq: Sequence) -> None:
        self._arrivals.drop(seq.request_id)
        pulling = seq.state in (State.PULLING, State.DISPLACED)
        if seq.source is not None and pulling and (peer := self._peers.known(seq.source.peer)):
            peer.send(CancelPull(seq.request_id, seq.source.kept))

    # Towards routers

    def _fail(self, request_id: str, reason: str, why: TransferFailure) -> None:
        seq = self._scheduler.sequences.get(request_id)
        if seq is not None:
            self.figures.transfer_failed(why)
            if seq.source is not None and seq.source.kept:  # what can't be had is computed
                self._stop_pulling(seq)
                self._scheduler.not_coming(request_id)
                self._wake.set()
                return
            self._cancel_pull(seq)
            self._not_handed_on(self._scheduler.fail(request_id, reason, time.monotonic()))

    def _not_handed_on(self, output: SeqOutput | None) -> None:
        """A snapshot did not come from one worker to the other: its router may try others."""
        self._finish(None if output is None else dataclasses.replace(output, retry=True))

    def _finish(self, output: SeqOutput | None) -> None:
        if output is not None:
            self._end(output)
            self._wake.set()

    def _end(self, output: SeqOutput) -> None:
        self._departures.pop(output.request_id, None)
        self._pulls.drop(output.request_id)
        self._publish([output])

    def _publish(self, outputs: list[SeqOutput]) -> None:
        self.figures.ended(outputs)
        self._clients.publish(outputs, self._scheduler.steps, self._scheduler.load)

    async def _heartbeat(self) -> None:
        """Fresh figures to every client though no step runs, and an end to what waits too long."""
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            now = time.monotonic()
            self._scheduler.cache.pins.expire(now)
            for output in self._scheduler.overdue(now):
                self.figures.transfer_failed("timeout")
                self._not_handed_on(output)
            for request_id in self._pulls.asked_before(now - self._config.handoff_timeout_s):
                if request_id not in self._scheduler.sequences:
                    self._pulls.refuse(request_id, "its prefill worker never got the request", told=False)
            self._clients.beat(self._scheduler.steps, self._scheduler.load)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
