"""The requests of a worker: how they come in, whom they belong to, and what their owners are told."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable

from wire.protocol import Load, PeerRef, SeqOutput, Submit, Timings
from workers.leader.actions import Action, Add, Arrived, Ended, Failed, Told, ToPeer, ToPuller
from workers.leader.clients import Client, Clients
from workers.leader.figures import WorkerFigures
from workers.leader.files import Files
from workers.leader.grammars import GrammarDesk
from workers.leader.handoffs import HandOffs
from workers.leader.intake import refusal, sequence_of
from workers.leader.peers import PeerRefused, Peers
from workers.leader.resumable import Resumable
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import Compiled


class Requests:
    """Each request belongs to the router that submitted it, or took it over.

    load: the figures that go to routers. wake: lets the worker step. vocab: size of the vocabulary. resume_s: how long
    a request goes on without its router.
    """

    files: Files

    def __init__(
        self,
        scheduler: Scheduler,
        handoffs: HandOffs,
        peers: Peers,
        grammars: GrammarDesk,
        clients: Clients,
        figures: WorkerFigures,
        load: Callable[[], Load],
        wake: Callable[[], None],
        *,
        vocab: int,
        resume_s: float,
    ) -> None:
        self._scheduler = scheduler
        self._handoffs = handoffs
        self._peers = peers
        self._grammars = grammars
        self._clients = clients
        self._figures = figures
        self._load = load
        self._wake = wake
        self._vocab = vocab
        self.resumable = Resumable(resume_s)
        self._held: list[SeqOutput] = []  # of the latest step: sent once the ranks have the next one
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Stop connecting to peers."""
        for task in self._tasks:
            task.cancel()

    # In

    def submit(self, client: Client, message: Submit) -> None:
        """A router submits a request."""
        seq = sequence_of(message, time.monotonic())
        reason = refusal(seq, self._scheduler.limits, self._vocab)
        if reason is None and self._is_here(seq.request_id):
            reason = f"request {seq.request_id} is here already"
        if reason is not None:
            client.outbox.append(SeqOutput(seq.request_id, 0, finish="error", error=reason))
            client.flush(self._scheduler.steps, self._load())
            return
        self._clients.own(seq.request_id, client)
        if (stale := self.resumable.submitted(message)) is not None:
            self.drop(stale)
        if self._handoffs.taking.must_connect(seq):
            source = message.source or message.prefix.source
            assert source is not None
            self._spawn(self._join(seq, source))
        else:
            self.add(seq)

    def add(self, seq: Sequence) -> None:
        """Schedule a request, once its grammar is compiled."""
        if self._grammars.holds_back(seq):
            return
        self._scheduler.add(seq)
        self.perform(self._handoffs.giving.added(seq))

    def compiled(self, event: Compiled) -> None:
        """A grammar is ready, or can't be: schedule the requests that waited for it, or end them."""
        for seq in self._grammars.compiled(event):
            if event.error is None:
                self.add(seq)
            else:
                output = SeqOutput(seq.request_id, 0, finish="error", error=event.error, unservable=True)
                self.perform(self._handoffs.endings.end(output))
        self._wake()

    def _is_here(self, request_id: str) -> bool:
        return any(request_id in here for here in (self._scheduler.sequences, self._handoffs, self._grammars))

    async def _join(self, seq: Sequence, source: PeerRef) -> None:
        reason, mismatch = None, False
        try:
            await self._peers.connect(source)
        except PeerRefused as error:
            reason, mismatch = str(error), error.mismatch
        self.perform(self._handoffs.taking.joined(seq, reason, mismatch=mismatch))

    # Owners

    def attach(self, client: Client, request_id: str) -> None:
        """A router takes a request over, from another one that may still be there."""
        entry = self.resumable.attach(request_id, time.monotonic())
        before = self._clients.owner(request_id)
        if before is not None and before is not client:
            error = "its client has come back through another router"
            before.outbox.append(SeqOutput(request_id, 0, finish="error", error=error))
            before.flush(self._scheduler.steps, self._load())
        tokens = tuple(entry.tokens) if entry is not None else ()
        if entry is not None and (entry.running or entry.whole is not None):
            client.outbox.append(SeqOutput(request_id, 0, tokens, finish=entry.whole, timings=Timings()))
        else:  # it continues at another worker, after these tokens
            client.outbox.append(SeqOutput(request_id, 0, tokens))
            reason = "it is not computed here any more"
            client.outbox.append(SeqOutput(request_id, len(tokens), finish="error", error=reason, retry=True))
        if entry is not None and entry.running:
            self._clients.own(request_id, client)
        client.flush(self._scheduler.steps, self._load())

    def abort(self, client: Client, request_id: str) -> None:
        """A router gives a request up; ignored if another router has taken it over."""
        if self._clients.owner(request_id) in (None, client):
            self.resumable.dropped(request_id, time.monotonic())
            self.drop(request_id)

    def forget(self, client: Client) -> None:
        """A connection ended: drop its requests, except those that may be resumed."""
        now = time.monotonic()
        for request_id in self._clients.leave(client):
            if self.resumable.orphaned(request_id, now):
                self._clients.disown(request_id)
            else:
                self.drop(request_id)
        self.perform(self._handoffs.giving.puller_left(client, time.monotonic()))

    def drop(self, request_id: str) -> None:
        """Free a request without an output, because its owner gave it up."""
        self.release(request_id)
        self.perform(self._handoffs.endings.drop(request_id))

    def release(self, request_id: str) -> None:
        """Tell nobody of a request any more."""
        self._clients.disown(request_id)
        self._grammars.drop(request_id)

    # Out

    def perform(self, actions: Iterable[Action]) -> None:
        """Do what an event of a hand-off asks for."""
        for action in actions:
            match action:
                case ToPuller():
                    action.puller.tell(action.message)
                case ToPeer():
                    if peer := self._peers.known(action.worker_id):
                        peer.send(action.message)
                case Add():
                    self.add(action.seq)
                case Failed():
                    self._figures.transfer_failed(action.why)
                case Arrived():
                    self._figures.transferred(action.seconds)
                case Ended() | Told():
                    self.publish([action.output])
        self._wake()

    def hold(self, outputs: list[SeqOutput]) -> None:
        """Send outputs with the next ones: ranks that wait for their next step get that first."""
        self._held += outputs

    def publish(self, outputs: list[SeqOutput]) -> None:
        """Send outputs to their routers, after those of the latest step."""
        outputs, self._held = self._held + outputs, []
        self._figures.ended(outputs)
        self.files.ended(outputs)
        if self.resumable:
            now = time.monotonic()
            for output in outputs:
                self.resumable.took(output, self._generated, now)
        self._clients.publish(outputs, self._scheduler.steps, self._load())

    def _generated(self, request_id: str, count: int) -> list[int]:
        """The first generated tokens of a sequence; none if it has ended."""
        seq = self._scheduler.sequences.get(request_id)
        return list(seq.tokens[seq.prompt_tokens : seq.prompt_tokens + count]) if seq is not None else []

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
