"""A leader's side of its ranks: starts them, sends plans, waits for results, notices deaths."""

import asyncio
import functools
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from wire.codec import WireError
from wire.liveness import AwakeClock
from workers.config import Rendezvous, WorkerConfig
from workers.leader.rank_watch import RankWatch
from workers.schedule.step import (
    RANKS,
    Compile,
    Compiled,
    Compiles,
    FetchFailed,
    Forget,
    LinkLost,
    Loading,
    Ping,
    Pong,
    RankFailed,
    RankMessage,
    RankStats,
    Ready,
    Received,
    Sent,
    StepPlan,
    StepResult,
    WriteFailed,
    Written,
)

# Starts the process of one rank, which runs `workers.rank.process.rank_main`. The returned awaitable ends with the
# process, and ends the process when cancelled.
Launch = Callable[[int, str, Rendezvous], Awaitable[object]]
Event = Loading | Received | FetchFailed | Written | WriteFailed | Sent | LinkLost | Compiled | RankStats
# Seconds for ranks to end by themselves; fewer if one is lost, because the others may wait for it.
_END_S, _LOST_END_S = 2.0, 0.5
# Seconds between two signs of life of ranks that have no step to do.
_PING_S = 0.5
_MEMORY = "/dev/shm"


def free_port(host: str) -> int:
    """A port on which nobody listens now.

    Rank 0 binds it a moment later; if another process takes it first, the start fails.
    """
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class WorkerLost(RuntimeError):
    """A rank ended, so the worker can't continue; the message says why."""


class Ranks:
    """The worker's rank processes. All calls come from one event loop."""

    def __init__(self, config: WorkerConfig, awake: AwakeClock, on_event: Callable[[Event], None]) -> None:
        self._config = config
        self._awake = awake
        self._watch = RankWatch(config.tp, config.device == "cuda", self._cpu_s)
        self._pinged = 0.0
        self._on_event = on_event
        self._folder: Path | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._ready: dict[int, Ready] = {}
        self._all_ready = asyncio.Event()
        # None wakes the waiting caller when a rank is lost.
        self._results: asyncio.Queue[StepResult | None] = asyncio.Queue()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None
        self._ending: list[asyncio.Future[object]] = []

    async def start(self, launch: Launch) -> list[Ready]:
        """Start all ranks and wait until they have loaded; WorkerLost if one ends first."""
        # In memory if possible: ranks of one host meet in it through shared memory.
        self._folder = Path(tempfile.mkdtemp(prefix="ling-", dir=_MEMORY if os.path.isdir(_MEMORY) else None))
        endpoint = str(self._folder / "leader")
        self._server = await asyncio.start_unix_server(self._serve, endpoint)
        rendezvous = Rendezvous(self._folder, self._config.host, free_port(self._config.host))
        for rank in range(self._config.tp):
            ended = asyncio.ensure_future(launch(rank, endpoint, rendezvous))
            ended.add_done_callback(functools.partial(self._ended, rank))
            self._ending.append(ended)
        ready = asyncio.create_task(self._all_ready.wait())
        try:
            await asyncio.wait((ready, self._lost), return_when=asyncio.FIRST_COMPLETED)
            if self._lost.done():
                self._lost.result()
        finally:
            ready.cancel()
        return [self._ready[r] for r in range(self._config.tp)]

    def send(self, plan: StepPlan) -> None:
        """Give all ranks their next step."""
        self._watch.sent(plan, self._awake.s)
        self._tell(plan)

    def check(self) -> None:
        """Detect ranks that hang. Call it often once all ranks are ready."""
        now = self._awake.s
        if self._watch.idle and now - self._pinged > _PING_S:
            self._pinged = now
            self._watch.asked(now)
            self._tell(Ping())
        if not self._lost.done() and (reason := self._watch.hung(now)) is not None:
            self._lose(reason)

    def _tell(self, message: StepPlan | Ping) -> None:
        frame = RANKS.encode(message)
        for writer in self._writers.values():
            writer.write(frame)

    def _cpu_s(self, rank: int) -> float | None:
        """The CPU time of a rank's process; None if the system does not tell it."""
        try:
            stat = Path(f"/proc/{self._ready[rank].pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def tell_first(self, message: Compile | Forget) -> None:
        """Send rank 0, which samples, a task beside its steps."""
        self._writers[0].write(RANKS.encode(message))

    async def result(self) -> StepResult:
        """Rank 0's next result; WorkerLost if a rank ends first."""
        result = await self._results.get()
        if result is None:
            self._lost.result()
            raise AssertionError("unreachable: lost carries an exception")
        return result

    @property
    def lost(self) -> asyncio.Future[None]:
        """Fails with WorkerLost when a rank has ended."""
        return self._lost

    async def close(self) -> None:
        """End the ranks.

        They end when the connection closes; one that is stuck waiting for a dead peer is cancelled.
        """
        for writer in self._writers.values():
            writer.close()
        if self._server is not None:
            self._server.close()
        if self._ending:
            _, stuck = await asyncio.wait(self._ending, timeout=_LOST_END_S if self._lost.done() else _END_S)
            for ended in stuck:
                ended.cancel()
            await asyncio.gather(*self._ending, return_exceptions=True)
        if self._lost.done():
            self._lost.exception()
        else:
            self._lost.cancel()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank = -1
        try:
            while True:
                message = await RANKS.read(reader)
                if isinstance(message, Ready):
                    rank = message.rank
                    self._writers[rank] = writer
                self._take(message)
        except (OSError, EOFError):
            self._lose(f"rank {rank} closed its connection" if rank >= 0 else "a rank ended before it was ready")
        except WireError as error:
            self._lose(f"rank {rank} sent {error}")
        finally:
            writer.close()

    def _take(self, message: RankMessage) -> None:
        match message:
            case StepResult():
                self._watch.done(self._awake.s)
                self._results.put_nowait(message)
            case Ready():
                self._ready[message.rank] = message
                if len(self._ready) == self._config.tp:
                    self._all_ready.set()
            case Pong():
                self._watch.answered(message.rank)
            case Compiles():
                self._watch.compiles(self._awake.s)
            case RankFailed():
                self._lose(f"rank {message.rank} failed: {message.reason}")
            case StepPlan() | Compile() | Forget() | Ping():
                self._lose(f"a rank sent a {type(message).__name__}")
            case _:
                self._on_event(message)

    def _ended(self, rank: int, done: "asyncio.Future[object]") -> None:
        reason = "was cancelled" if done.cancelled() else repr(done.exception() or "returned")
        self._lose(f"rank {rank} ended: {reason}")

    def _lose(self, reason: str) -> None:
        if not self._lost.done():
            self._lost.set_exception(WorkerLost(reason))
            self._results.put_nowait(None)
