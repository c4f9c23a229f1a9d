"""A fake worker, which speaks the protocol over TCP and makes up its tokens.

As a program, for benchmarks, it prints its port and serves until its stdin closes.
"""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from wire.codec import CLUSTER
from wire.digest import PageDigests
from wire.handshake import accept
from wire.liveness import BEAT_S
from wire.protocol import (
    Abort,
    Attach,
    Drain,
    Find,
    Finish,
    Found,
    Hello,
    KeptEvent,
    Load,
    Move,
    Park,
    Parked,
    PeerRef,
    Pin,
    RankInfo,
    Role,
    SeqOutput,
    StepOutputs,
    Submit,
    Tier,
    Timings,
    TokenLogprob,
    Unpin,
    WorkerInfo,
)
from wire.tls import listen

Request = Submit
VOCAB = 256


Answer = Callable[[int], int]  # the token at each offset


def counting(request: Request) -> Answer:
    """The default answer: it counts up from a start that prompt and seed decide, also when it is resumed."""
    prompt = request.token_ids[: len(request.token_ids) - request.generated]
    start = sum(prompt) + request.sampling.seed
    return lambda offset: 2 + (start + offset) % (VOCAB - 2)


def logprob_of(token_id: int, top: int) -> TokenLogprob:
    """A made-up log-probability, which is always the same for the same token."""
    ids = tuple((token_id + i) % VOCAB for i in range(top))
    return TokenLogprob(token_id, -token_id / 100, ids, tuple(-(token_id + i) / 100 for i in range(top)))


@dataclass(slots=True)
class Running:
    """A request being answered; `at` is the index of its next token."""

    request: Request
    client: "Client | None"
    at: int
    answer: Answer
    done: Finish | None = None


@dataclass(slots=True, eq=False)
class Client:
    """A connected router."""

    name: str
    writer: asyncio.StreamWriter
    seen: int = 0
    outbox: list[SeqOutput] = field(default_factory=list)
    kept: list[KeptEvent] = field(default_factory=list)


class FakeWorker:
    """One worker of either role.

    answer: what it says to a request. tokens_per_step, pace_s: how many tokens a sequence gets a step, and the
    seconds between steps. `gate`: no step is taken while it is cleared. refuse: finish the next `refusals` requests
    with this error, of which a router is to try again if `retry`, and
    which is the request's own fault if `unservable`. poison: a prompt's first token that ends the worker
    when it is computed; `ended` is set then.
    silent: it says nothing while it has no step to tell of. tiers: where it keeps what, by digest, if `keeps`; host:
    whether it can park; pins: where sessions stand.
    Workers do not talk to each other: a decode worker begins at once.
    """

    def __init__(
        self,
        worker_id: str,
        role: Role,
        *,
        answer: Callable[[Request], Answer] = counting,
        tokens_per_step: int = 1,
        pace_s: float = 0.0,
        slots: int = 64,
        pages: int = 4096,
        max_model_len: int = 1024,
        weights_id: str = "w",
        refuse: str | None = None,
    ) -> None:
        self.answer = answer
        self.tokens_per_step = tokens_per_step
        self.pace_s = pace_s
        self.refuse = refuse
        self.refusals = 1 << 30
        self.retry = False
        self.unservable = False
        self.poison: int | None = None
        self.ended = asyncio.Event()
        self.drained = asyncio.Event()
        self.silent = False
        self.asked_to_move: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.keeps = False
        self.host = True
        self.tiers: dict[bytes, Tier] = {}
        self.pins: dict[str, bytes] = {}
        self.received: list[Request] = []
        self.aborted: set[str] = set()
        self.past: dict[str, Running] = {}
        self.stops = False
        self.arrived = asyncio.Event()  # set at every message and step
        self.clients: set[Client] = set()
        self.running: dict[str, Running] = {}
        self._shape = (slots, pages, max_model_len, weights_id)
        self._id, self._role = worker_id, role
        self._wake = asyncio.Event()
        self._steps = 0

    async def start(self, port: int = 0) -> "FakeWorker":
        """Listen on loopback."""
        self._server = await listen(self._serve, "127.0.0.1", port)
        slots, pages, max_model_len, weights_id = self._shape
        port = self._server.sockets[0].getsockname()[1]
        pid = os.getpid()
        rank = RankInfo(0, pid, "here", "cpu", "127.0.0.1", 1)
        self.info = WorkerInfo(
            self._id, self._role, "127.0.0.1", port, "here", pid, weights_id, "l", VOCAB, 16, pages, slots,
            max_model_len, (rank,),
        )  # fmt: skip
        self.ref = PeerRef(self._id, "127.0.0.1", port)
        self._task = asyncio.create_task(self._run())
        self._beating = asyncio.create_task(self._beat())
        return self

    async def die(self) -> None:
        """End at once, like a killed process."""
        self._task.cancel()
        self._end()
        await asyncio.gather(self._task, return_exceptions=True)

    def fail(self, reason: str) -> None:
        """End all running requests with an error."""
        for request_id, running in self.running.items():
            if running.client is not None:
                running.client.outbox.append(SeqOutput(request_id, running.at, finish="error", error=reason))
        self.running.clear()
        self._wake.set()

    def move(self, kept: bool = True) -> None:
        """Give up all running requests, like a worker that drains. kept: whether it keeps their states."""
        for request_id, running in self.running.items():
            tokens = len(running.request.token_ids) - running.request.generated + running.at
            kept_tokens = tokens - 1 if kept else 0
            running.client.outbox.append(SeqOutput(request_id, running.at, finish="moved", kept_tokens=kept_tokens))
        self.running.clear()
        self._wake.set()

    def announce(self) -> None:
        """Announce the kept states of all running requests; each request is given up when its router asks for that."""
        for request_id, running in self.running.items():
            tokens = len(running.request.token_ids) - running.request.generated + running.at
            running.client.outbox.append(SeqOutput(request_id, running.at, kept_tokens=tokens - 1, leaving=True))

    def _end(self) -> None:
        self._beating.cancel()
        self._server.close()
        for client in list(self.clients):
            client.writer.transport.abort()
        self.ended.set()

    def load(self) -> Load:
        """The load, as if nothing ever queued and each sequence held one page."""
        busy = len(self.running)
        return Load(0, 0, busy, self.info.pages - busy, self.info.slots - busy, 0, 0.001)

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait until a condition holds, which is checked after each message and step."""
        async with asyncio.timeout(60):
            while not met():
                self.arrived.clear()
                await self.arrived.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer, "")
        hello = await CLUSTER.read(reader)
        assert isinstance(hello, Hello)
        client = Client(hello.name, writer)
        self.clients.add(client)
        writer.write(CLUSTER.encode(self.info))
        kept = tuple(KeptEvent(0, digest, tier) for digest, tier in self.tiers.items())
        if kept:  # one that is to be silent keeps nothing
            writer.write(CLUSTER.encode(StepOutputs(0, 0, self.load(), (), kept)))
        try:
            while True:
                self._handle(client, await CLUSTER.read(reader))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.clients.discard(client)
            self.running = {k: r for k, r in self.running.items() if r.client is not client or r.request.key}
            for running in self.running.values():
                running.client = None if running.client is client else running.client
            writer.close()
            self.arrived.set()

    def _handle(self, client: Client, message: object) -> None:  # a branch a message
        if isinstance(message, Abort):
            self._abort(client, message.request_id)
        elif isinstance(message, Find):
            self._find(client, message.key)
        elif isinstance(message, Attach):
            self._attach(client, message.request_id)
        elif isinstance(message, Pin | Unpin | Park):
            self._session(client, message)
        elif isinstance(message, Move):
            self.asked_to_move.append(message.request_id)
            if (running := self.running.pop(message.request_id, None)) is not None:
                tokens = len(running.request.token_ids) - running.request.generated + running.at
                client.outbox.append(SeqOutput(message.request_id, running.at, finish="moved", kept_tokens=tokens - 1))
        elif isinstance(message, Drain):
            self.drained.set()
        else:
            assert isinstance(message, Submit)
            client.seen += 1
            self.received.append(message)
            if self.refuse is not None and self.refusals > 0:
                self.refusals -= 1
                output = SeqOutput(message.request_id, 0, finish="error", error=self.refuse, retry=self.retry)
                output = structs.replace(output, unservable=self.unservable)
                client.outbox.append(output)
            else:
                first = message.generated + (message.source is not None)
                self.running[message.request_id] = Running(message, client, first, self.answer(message))
        self.arrived.set()
        self._wake.set()

    def _session(self, client: Client, message: Pin | Unpin | Park) -> None:
        if isinstance(message, Park):
            if self.host:
                self.put(message.mark.position, message.mark.digest, "host")
            reason = None if self.host else "it keeps nothing below the device"
            client.writer.write(CLUSTER.encode(StepOutputs(0, client.seen, self.load(), (), tuple(client.kept))))
            client.kept.clear()
            client.writer.write(CLUSTER.encode(Parked(message.call, reason)))
            return
        self.pins.pop(message.session, None)
        marks = message.marks if isinstance(message, Pin) else ()
        if (mark := next((m for m in marks if m.digest in self.tiers), None)) is not None:
            self.pins[message.session] = mark.digest

    def _abort(self, client: Client, request_id: str) -> None:
        held = self.running.get(request_id)
        if held is not None and held.client not in (None, client):
            return  # another router's by now
        self.aborted.add(request_id)
        if held is not None:
            self._past(self.running.pop(request_id))

    def _past(self, running: Running) -> None:
        """Keep a finished request's tokens, if its client may come back."""
        if running.request.key and not running.request.handoff:
            self.past[running.request.request_id] = running

    def _find(self, client: Client, key: bytes) -> None:
        there = [r for r in (*self.running.values(), *self.past.values()) if r.request.key == key and r.at]
        found = there[-1].request if there else None
        answer = Found(key, found.request_id if found else "", found.body if found else b"")
        client.writer.write(CLUSTER.encode(answer))

    def _attach(self, client: Client, request_id: str) -> None:
        running = self.running.get(request_id)
        entry = running or self.past[request_id]
        if running is not None:
            if running.client is not None:
                running.client.outbox.append(SeqOutput(request_id, 0, finish="error", error="taken over"))
            running.client = client
        tokens = tuple(entry.answer(i) for i in range(entry.at))
        client.outbox.append(SeqOutput(request_id, 0, tokens, finish=entry.done, timings=Timings()))
        if running is None and entry.done is None:
            client.outbox.append(SeqOutput(request_id, len(tokens), finish="error", error="it ended", retry=True))

    def put(self, position: int, digest: bytes, tier: Tier | None) -> None:
        """Keep a snapshot in this tier from now on; None drops it."""
        if tier is None:
            del self.tiers[digest]
        else:
            self.tiers[digest] = tier
        for client in self.clients:
            client.kept.append(KeptEvent(position, digest, tier))

    def _keep(self, request: Request, said: list[int]) -> None:
        """Keep states as workers do: at the end of the prompt and of the answer."""
        digests = PageDigests(self.info.page_size, request.prefix.scope)
        ids = [*request.token_ids, *said]
        digests.extend(ids)
        for position in {len(request.token_ids) - 1, len(ids) - 1 - request.warm}:
            if position > 0:
                self.put(position, digests.at(ids, position), "device")

    async def _run(self) -> None:
        due = 0.0
        while True:
            if not self.running and not any(c.outbox for c in self.clients):
                self._wake.clear()
                await self._wake.wait()
            await self.gate.wait()
            if any(r.request.token_ids[0] == self.poison for r in self.running.values()):
                self._end()
                return
            for running in list(self.running.values()):
                output = self._advance(running)
                if running.client is not None:
                    running.client.outbox.append(output)
                if output.finish is not None:
                    running.done = output.finish
                    self._past(self.running.pop(running.request.request_id))
                    if self.keeps:
                        self._keep(running.request, [running.answer(i) for i in range(running.at)])
            self._steps += 1
            self.arrived.set()
            for client in list(self.clients):
                outputs, client.outbox = tuple(client.outbox), []
                kept, client.kept = tuple(client.kept), []
                client.writer.write(CLUSTER.encode(StepOutputs(self._steps, client.seen, self.load(), outputs, kept)))
                with contextlib.suppress(ConnectionError):
                    await client.writer.drain()
            due = max(due + self.pace_s, now := asyncio.get_running_loop().time())
            await asyncio.sleep(due - now)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for client in () if self.silent else self.clients:
                client.writer.write(CLUSTER.encode(StepOutputs(self._steps, client.seen, self.load())))

    def _advance(self, running: Running) -> SeqOutput:
        request, offset, sampling = running.request, running.at, running.request.sampling
        split = request.handoff
        if split and offset == 1:
            timings = Timings(queue_s=0.1, prefill_s=0.2, transfer_s=0.3)
            return SeqOutput(request.request_id, 1, finish="handoff", timings=timings)
        tokens: list[int] = []
        finish: Finish | None = None
        while finish is None and len(tokens) < (1 if split else self.tokens_per_step):
            tokens.append(running.answer(running.at))
            running.at += 1
            if tokens[-1] in sampling.stop_token_ids and running.at > sampling.min_tokens:
                finish = "stop"
            elif running.at >= sampling.max_tokens:
                finish = "length"
        logprobs: tuple[TokenLogprob, ...] = ()
        if sampling.logprobs is not None:
            logprobs = tuple(logprob_of(t, sampling.logprobs) for t in tokens)
        prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
        if sampling.prompt_logprobs is not None and offset == 0:
            top = sampling.prompt_logprobs
            prompt_logprobs = (None, *(logprob_of(t, top) for t in request.token_ids[1:]))
        return SeqOutput(
            request.request_id,
            offset,
            tuple(tokens),
            logprobs,
            prompt_logprobs,
            finish,
            timings=Timings(queue_s=0.4, transfer_s=0.5, decode_s=0.6) if finish else None,
            cached_tokens=3 if offset == 0 else 0,
        )


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=("prefill", "decode"), required=True)
    parser.add_argument("--tokens-per-step", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0)
    args = parser.parse_args()
    worker = await FakeWorker(
        args.role, args.role, tokens_per_step=args.tokens_per_step, pace_s=args.pace, slots=4096, pages=1 << 20,
        max_model_len=1 << 20,
    ).start()  # fmt: skip
    print(worker.ref.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await worker.die()


if __name__ == "__main__":
    asyncio.run(_main())
