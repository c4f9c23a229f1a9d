"""Starts ranks as processes of this machine, forked from one that has already imported torch."""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workers.config import Rendezvous, WorkerConfig
from workers.leader.ranks import Launch
from workers.rank.job import ENDED, LENGTH, PID, RankJob

# The environment variable with the address of a fork server that the processes of a machine share.
FORK_SERVER = "LING_FORK_SERVER"


class ForkServer:
    """A fork server as a child process. It ends with this process or at `close`; its ranks end with their leaders.

    address: the Unix socket at which any process of this user may ask for ranks.
    """

    def __init__(self, folder: Path, log: Path | None = None) -> None:
        """Start it.

        folder: for the socket; only this user may enter it. log: takes the output of the server and its ranks; None for
        this process's standard error.
        """
        self.address = str(folder / "forks")
        with contextlib.ExitStack() as stack:
            # The socket listens before the process runs, so that no caller has to wait for the process.
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(self.address)
            listener.listen()
            output = None if log is None else stack.enter_context(log.open("ab"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.rank.fork_server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                # With more threads, libraries start some as they are imported; a fork would not have them.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def close(self) -> None:
        """End the server. Ranks that it has forked run on."""
        self._process.kill()
        self._process.communicate()


def fork_launcher(config: WorkerConfig, worker_id: str, address: str, gpus: Sequence[int] = ()) -> Launch:
    """A `Launch` that asks the fork server at `address` for a process a rank, which gets this process's environment.

    gpus: the index of each rank's GPU; if empty, ranks take the visible GPUs in turn. The awaitable raises if the
    rank's process did not end in order, and kills the process when cancelled.
    """

    async def launch(rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(address)
        except OSError as error:
            raise RuntimeError(
                f"no fork server answers at {address}: {error.strerror}; start the cluster anew"
            ) from error
        pid = None
        try:
            gpu = gpus[rank] if gpus else None
            job = pickle.dumps(RankJob(config, worker_id, rank, endpoint, rendezvous, gpu, dict(os.environ)))
            writer.write(LENGTH.pack(len(job)) + job)
            (pid,) = PID.unpack(await reader.readexactly(PID.size))
            if await reader.read() != ENDED:
                raise RuntimeError(f"rank {rank}'s process {pid} ended too early; its output says why")
        except asyncio.IncompleteReadError as error:
            raise RuntimeError(f"rank {rank}'s process did not start; the fork server's output says why") from error
        except asyncio.CancelledError:
            if pid is not None:
                # The process still runs, because its end of the connection is open.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise
        finally:
            writer.close()

    return launch
