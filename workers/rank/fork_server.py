"""A process that has imported torch and forks ranks from itself: `python -m workers.rank.fork_server FD`.

Importing torch takes three seconds of a core and 200 MB; a forked rank has it at once and shares its memory.
The server starts no thread and never touches a GPU, so that its forks may do both.
"""

import gc
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

from workers.rank.job import ENDED, LENGTH, PID, RankJob


def serve(listener: socket.socket, parent: int) -> None:
    """Fork a rank for each connection, until the pipe `parent` shows that the parent is gone."""
    import workers.rank.process  # noqa: F401, PLC0415 - what every fork has then; those who only name a RankJob do without

    # A garbage collection in a fork would write to every object of the server, and so copy the shared memory.
    gc.collect()
    gc.freeze()
    # Nobody waits for the ranks: the kernel reaps them. The terminal's Ctrl-C is the leader's to act on.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        readable, _, _ = select.select([listener.fileno(), parent], [], [])
        if parent in readable:
            return
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                listener.close()
                os.close(parent)
                _become_rank(connection)


def _become_rank(connection: socket.socket) -> None:
    """The forked process's whole life. It ends when the connection closes, whatever it is doing."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        job = _receive(connection)
        Path("/proc/self/comm").write_text(f"ling-rank-{job.rank}")
        os.environ.clear()
        os.environ.update(job.environment)
        connection.sendall(PID.pack(os.getpid()))
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        _run(job)
        connection.sendall(ENDED)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _run(job: RankJob) -> None:
    from wire.logs import set_up  # noqa: PLC0415 - as in `serve`
    from workers.rank.process import rank_main  # noqa: PLC0415

    set_up(job.config.logs, worker=job.worker_id, rank=str(job.rank))
    rank_main(job.config, job.worker_id, job.rank, job.endpoint, job.rendezvous, job.gpu)


def _receive(connection: socket.socket) -> RankJob:
    (size,) = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))
    # Only the same user can connect, because the socket is in a folder of that user's own.
    job = pickle.loads(connection.recv(size, socket.MSG_WAITALL))
    assert isinstance(job, RankJob)
    return job


def _end_with(connection: socket.socket) -> None:
    connection.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.stdin.fileno())
