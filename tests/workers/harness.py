"""Runs workers without Ray: leaders on this event loop, ranks as child processes."""

import asyncio
import functools
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import structs

from wire.codec import CLUSTER
from wire.handshake import call
from wire.protocol import (
    Abort,
    FileKept,
    FilePart,
    Hello,
    Load,
    LoadFile,
    Mark,
    Move,
    Park,
    Parked,
    PeerRef,
    Prefix,
    Role,
    SamplingParams,
    SaveFile,
    SeqOutput,
    StepOutputs,
    Submit,
    WorkerInfo,
)
from wire.snapshot_file import Turn
from wire.tls import connect
from wire.tokens import TokenIds
from workers.config import WorkerConfig
from workers.leader.leader import Leader
from workers.leader.ranks import Launch
from workers.leader.start import start_leader
from workers.local import ForkServer, fork_launcher

GOLDEN = Path(__file__).parent.parent / "golden"
_ids = itertools.count()
_ONE_TOKEN = SamplingParams(max_tokens=1, seed=0, temperature=0.0)


@functools.cache
def forks() -> ForkServer:
    """The fork server for all workers of this process's tests; it ends with the process."""
    return ForkServer(Path(tempfile.mkdtemp(prefix="ling-")))


Launcher = Callable[[WorkerConfig, str], Launch]


def process_launcher(config: WorkerConfig, worker_id: str) -> Launch:
    """A launcher that starts ranks as processes."""
    return fork_launcher(config, worker_id, forks().address)


@dataclass(slots=True, eq=False)
class Stream:
    """One request's outputs from both its workers."""

    request_id: str
    decode: "Caller"
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    outputs: list[SeqOutput] = field(default_factory=list)

    @property
    def ended(self) -> SeqOutput | None:
        """The output that ended the request, if it has."""
        return next((o for o in self.outputs if o.finish not in (None, "handoff", "abort")), None)

    async def end(self) -> SeqOutput:
        """Wait for the request's end."""
        while self.ended is None:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 60)
        # Where the prefill worker ended it with the first token, a router calls the decode worker off.
        self.decode.send(Abort(self.request_id))
        return self.ended

    async def tokens(self, count: int) -> None:
        """Wait for that many tokens."""
        while sum(len(o.token_ids) for o in self.outputs) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 60)

    @property
    def cached(self) -> tuple[int, str | None]:
        """The prompt tokens that were not computed, and the place of their snapshot."""
        return next(((o.cached_tokens, o.cached_from) for o in self.outputs if o.cached_tokens), (0, None))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens in order."""
        return tuple(t for o in sorted(self.outputs, key=lambda o: o.offset) for t in o.token_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The tokens' log-probabilities, if they were asked for."""
        return tuple(p.logprob for o in sorted(self.outputs, key=lambda o: o.offset) for p in o.logprobs)


class Caller:
    """A minimal router: one connection to one worker."""

    def __init__(self, streams: dict[str, Stream]) -> None:
        self._streams = streams
        self.load: Load | None = None
        self.kept: dict[tuple[int, bytes], str | None] = {}
        self.seen = 0
        self.sent = 0
        self.closed = asyncio.Event()
        self._beat = asyncio.Event()

    async def connect(self, host: str, port: int) -> WorkerInfo:
        self._reader, self.writer = await connect(host, port)
        await call(self._reader, self.writer, "")
        self.writer.write(CLUSTER.encode(Hello("router-test", "router")))
        info = await CLUSTER.read(self._reader)
        assert isinstance(info, WorkerInfo)
        self._task = asyncio.create_task(self._read())
        return info

    def send(self, message: Submit | Abort | Move | Park) -> None:
        self.sent += isinstance(message, Submit)
        self.writer.write(CLUSTER.encode(message))

    async def _read(self) -> None:
        try:
            while True:
                message = await CLUSTER.read(self._reader)
                if isinstance(message, Parked):
                    assert message.reason is None
                    continue
                assert isinstance(message, StepOutputs)
                self.load, self.seen = message.load, message.seen
                for event in message.kept:
                    self.kept[event.position, event.digest] = event.tier
                for output in message.outputs:
                    stream = self._streams[output.request_id]
                    stream.outputs.append(output)
                    stream.changed.set()
                self._beat.set()
        except (OSError, EOFError):
            self.closed.set()

    async def until_kept(self, position: int, digest: bytes, tier: str) -> None:
        """Wait until the worker says that it keeps a snapshot there."""
        while self.kept.get((position, digest)) != tier:
            self._beat.clear()
            await asyncio.wait_for(self._beat.wait(), 60)

    async def idle(self, info: WorkerInfo) -> Load:
        """Wait until the worker says that everything is free again."""
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, f"not idle within 60 s: {self.load}"
            load = self.load
            if (
                load is not None
                and self.seen == self.sent
                and (load.free_pages, load.free_slots) == (info.pages, info.slots)
                and not (load.queued or load.running or load.transferring)
            ):
                return load
            self._beat.clear()
            await asyncio.wait_for(self._beat.wait(), 60)


@dataclass(slots=True)
class Worker:
    """A running worker and the test's connection to it."""

    leader: Leader
    running: asyncio.Task[None]
    caller: Caller

    @property
    def info(self) -> WorkerInfo:
        return self.leader.info

    @property
    def ref(self) -> PeerRef:
        return PeerRef(self.info.worker_id, self.info.host, self.info.port)


class Workers:
    """Workers of a test and the requests given to them."""

    def __init__(self) -> None:
        self.all: list[Worker] = []
        self._streams: dict[str, Stream] = {}
        self.copied: set[str] = set()  # requests whose next worker has what was told of them
        self.prompts: dict[str, tuple[int, ...]] = {}  # of requests, where a test keeps them

    async def start(
        self,
        config: WorkerConfig,
        role: Role,
        storage: Callable[[], Awaitable[object]] | None = None,
        live: Sequence[WorkerInfo] | None = None,
        launcher: Launcher | None = None,
    ) -> Worker:
        """Start a worker, to which earlier ones, or `live`, may lend their weights. launcher: starts its ranks."""
        worker_id = f"{role}-{next(_ids)}"

        def make(config: WorkerConfig) -> tuple[Leader, Launch]:
            return Leader(config, worker_id, role), (launcher or process_launcher)(config, worker_id)

        live = [worker.info for worker in self.all] if live is None else live
        leader = await asyncio.wait_for(start_leader(config, make, live, storage), 300)
        caller = Caller(self._streams)
        await caller.connect(leader.info.host, leader.info.port)
        worker = Worker(leader, asyncio.create_task(leader.run()), caller)
        self.all.append(worker)
        return worker

    def split(
        self,
        prefill: Worker,
        decode: Worker,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        prefix: Prefix = Prefix(),  # noqa: B008 # frozen
    ) -> Stream:
        """Send a request to two workers."""
        stream = self._new(decode)
        own = structs.replace(prefix, kept_tokens=0, source=None)
        decode.caller.send(Submit(stream.request_id, TokenIds.of(prompt), sampling, 0, prefill.ref, prefix=own))
        prefill.caller.send(Submit(stream.request_id, TokenIds.of(prompt), sampling, 0, handoff=True, prefix=prefix))
        return stream

    def whole(
        self,
        decode: Worker,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        prefix: Prefix = Prefix(),  # noqa: B008 # frozen
        priority: int = 0,
    ) -> Stream:
        """Send a request to one worker."""
        stream = self._new(decode)
        decode.caller.send(Submit(stream.request_id, TokenIds.of(prompt), sampling, priority, prefix=prefix))
        return stream

    def resumed(
        self,
        decode: Worker,
        prompt: tuple[int, ...],
        had: tuple[int, ...],
        sampling: SamplingParams,
        prefix: Prefix = Prefix(),  # noqa: B008 # frozen
    ) -> Stream:
        """Send a request that has got some tokens from another worker."""
        stream = self._new(decode)
        ids = TokenIds.of((*prompt, *had))
        decode.caller.send(Submit(stream.request_id, ids, sampling, generated=len(had), prefix=prefix))
        return stream

    async def drained(self, stream: Stream, to: Worker, gone: Worker, scope: str = "") -> SeqOutput:
        """Wait for a stream's end at a worker that is to end. As a router, have `to` take first what that tells of."""
        while stream.ended is None:
            told = next((o.kept_tokens for o in stream.outputs if o.leaving), 0)
            if told and stream.request_id not in self.copied:
                self.copied.add(stream.request_id)
                warm = self._new(to)
                ids = TokenIds.of((*self.prompts[stream.request_id], *stream.token_ids)[: told + 1])
                prefix = Prefix((), scope, told, gone.ref)
                to.caller.send(Submit(warm.request_id, ids, _ONE_TOKEN, prefix=prefix, warm=True))
                await warm.end()
                gone.caller.send(Move(stream.request_id))
            else:
                stream.changed.clear()
                await asyncio.wait_for(stream.changed.wait(), 60)
        return stream.ended

    async def moved(
        self, stream: Stream, to: Worker, gone: Worker, sampling: SamplingParams, scope: str = ""
    ) -> Stream:
        """Go on, as a router does, with a sequence that its worker gives up, if it does."""
        end = await self.drained(stream, to, gone, scope)
        if end.finish != "moved":
            return stream
        prefix = Prefix((), scope, end.kept_tokens, gone.ref if end.kept_tokens else None)
        again = self._new(to)
        had = stream.token_ids
        again.outputs = [structs.replace(o, finish=None) for o in stream.outputs]
        ids = TokenIds.of((*self.prompts[stream.request_id], *had))
        to.caller.send(Submit(again.request_id, ids, sampling, generated=len(had), prefix=prefix))
        return again

    async def saved(self, worker: Worker, marks: tuple[Mark, ...], ids: tuple[int, ...], prompt_tokens: int) -> bytes:
        """A kept snapshot as a file."""
        turn = Turn("test", prompt_tokens, _ONE_TOKEN)
        async with self._file(worker, SaveFile(marks, TokenIds.of(ids), msgspec.json.encode(turn))) as (reader, _):
            out = bytearray()
            while True:
                part = await CLUSTER.read(reader)
                assert isinstance(part, FilePart), part
                if not part.data:
                    return bytes(out)
                out += part.data

    async def loaded(self, worker: Worker, scope: str, content: bytes) -> None:
        """Have a worker keep the snapshot of a file."""
        async with self._file(worker, LoadFile(scope)) as (reader, writer):
            for at in range(0, len(content), 1 << 20):
                writer.write(CLUSTER.encode(FilePart(content[at : at + (1 << 20)])))
            writer.write(CLUSTER.encode(FilePart(b"")))
            answer = await CLUSTER.read(reader)
            assert isinstance(answer, FileKept), answer

    @asynccontextmanager
    async def _file(
        self, worker: Worker, asked: SaveFile | LoadFile
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await connect(worker.info.host, worker.info.port)
        await call(reader, writer, "")
        writer.write(CLUSTER.encode(Hello("router-test", "file")))
        writer.write(CLUSTER.encode(asked))
        try:
            async with asyncio.timeout(60):
                yield reader, writer
        finally:
            writer.close()

    def _new(self, decode: Worker) -> Stream:
        stream = Stream(f"request-{next(_ids)}", decode.caller)
        self._streams[stream.request_id] = stream
        return stream

    async def close(self) -> None:
        for worker in self.all:
            worker.running.cancel()
            await worker.leader.close()
            await asyncio.gather(worker.running, return_exceptions=True)


@asynccontextmanager
async def workers() -> AsyncIterator[Workers]:
    """Workers that are ended with the block."""
    started = Workers()
    try:
        yield started
    finally:
        await started.close()
