"""Tests ranks forked from a process that has imported torch: what they share, and how they start and end."""

import asyncio
import contextlib
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.workers.harness import GOLDEN, forks, process_launcher
from workers.config import Rendezvous, WorkerConfig
from workers.leader.leader import Leader
from workers.leader.ranks import Launch
from workers.local import fork_launcher
from workers.rank.job import LENGTH, PID, RankJob
from workers.schedule.step import RANKS, Loading, RankMessage, Ready

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]
CONFIG = WorkerConfig(str(GOLDEN / "base"), dtype="float32")
WAIT_S = 60


def gone(*processes: psutil.Process) -> bool:
    return not psutil.wait_procs(processes, timeout=WAIT_S)[1]


def code(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


@contextmanager
def silent_leader(folder: Path) -> Iterator[socket.socket]:
    """A leader's socket, which takes a rank's connection and never sends anything."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "leader"))
        listener.listen()
        listener.settimeout(WAIT_S)
        yield listener


def begin(launch: Launch, folder: Path) -> "asyncio.Task[object]":
    async def run() -> object:
        return await launch(0, str(folder / "leader"), Rendezvous(folder, "127.0.0.1", 0))

    return asyncio.create_task(run())


async def ready(listener: socket.socket) -> tuple[psutil.Process, socket.socket]:
    """The one rank's process, once it has loaded, and the leader's end of its connection."""
    connection, _ = await asyncio.to_thread(listener.accept)
    connection.settimeout(WAIT_S)
    message: RankMessage = Loading(0, "", 0, 0)
    while isinstance(message, Loading):
        message = await asyncio.to_thread(RANKS.read_blocking, lambda count: connection.recv(count, socket.MSG_WAITALL))
    assert isinstance(message, Ready)
    return psutil.Process(message.pid), connection


def test_the_process_that_asks_for_ranks_imports_no_torch() -> None:
    said, _ = code("import sys, workers.local; print('torch' in sys.modules)").communicate(timeout=WAIT_S)
    assert said == "False\n"


def test_ranks_are_named_and_share_the_memory_of_what_is_imported(tmp_path: Path) -> None:
    async def run() -> None:
        config = WorkerConfig(CONFIG.model, tp=2, dtype="float32")
        leader = Leader(config, "w", "decode")
        await leader.start(process_launcher(config, "w"))
        ranks = [psutil.Process(rank.pid) for rank in leader.info.ranks]
        assert [rank.name() for rank in ranks] == ["ling-rank-0", "ling-rank-1"]
        for memory in [rank.memory_full_info() for rank in ranks]:
            assert memory.pss < memory.rss / 2
        await leader.close()
        assert gone(*ranks)

    asyncio.run(run())


def test_a_rank_ends_with_the_process_that_asked_for_it_whatever_it_is_doing(tmp_path: Path) -> None:
    meeting = Rendezvous(tmp_path, "127.0.0.1", 0)
    job = pickle.dumps(RankJob(CONFIG, "w", 0, str(tmp_path / "leader"), meeting, None, {}))
    with silent_leader(tmp_path) as listener:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(forks().address)
            asking.sendall(LENGTH.pack(len(job)) + job)
            rank, connection = asyncio.run(ready(listener))
            assert asking.recv(PID.size) == PID.pack(rank.pid)
        assert gone(rank)
        connection.close()


def test_a_launch_that_is_cancelled_kills_its_rank(tmp_path: Path) -> None:
    async def run() -> None:
        with silent_leader(tmp_path) as listener:
            asked = begin(process_launcher(CONFIG, "w"), tmp_path)
            rank, connection = await ready(listener)
            rank.send_signal(signal.SIGSTOP)  # no longer able to end by itself
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked
            assert await asyncio.to_thread(gone, rank)
            connection.close()

    asyncio.run(run())


def test_a_rank_that_fails_or_dies_is_reported(tmp_path: Path) -> None:
    async def run() -> None:
        with silent_leader(tmp_path) as listener:
            asked = begin(process_launcher(CONFIG, "w"), tmp_path)
            rank, connection = await ready(listener)
            rank.kill()
            with pytest.raises(RuntimeError, match=f"rank 0's process {rank.pid} ended too early"):
                await asyncio.wait_for(asked, WAIT_S)
            connection.close()

            asked = begin(process_launcher(CONFIG, "w"), tmp_path)
            rank, connection = await ready(listener)
            connection.close()  # the leader has no more work
            await asyncio.wait_for(asked, WAIT_S)

    asyncio.run(run())


def test_a_fork_server_ends_with_its_parent(tmp_path: Path) -> None:
    start = (
        "import pathlib, sys, time; from workers.local import ForkServer\n"
        f"forks = ForkServer(pathlib.Path({str(tmp_path)!r})); print(forks.pid, flush=True); time.sleep(600)"
    )
    parent = code(start)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate(timeout=WAIT_S)
    assert gone(server)


def test_the_error_without_a_fork_server_gives_the_reason(tmp_path: Path) -> None:
    start = f"import pathlib; from workers.local import ForkServer; ForkServer(pathlib.Path({str(tmp_path)!r})).close()"
    code(start).communicate(timeout=WAIT_S)

    async def run() -> None:
        await begin(fork_launcher(CONFIG, "w", str(tmp_path / "forks")), tmp_path)

    with pytest.raises(RuntimeError, match=f"no fork server answers at {tmp_path}/forks"):
        asyncio.run(run())
