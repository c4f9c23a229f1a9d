"""A rank's process: a resident loop that runs the leader's plans."""

import os
import select
import socket
import threading
import traceback

import torch

from wire.codec import WireError
from wire.protocol import Grammar
from workers.collectives import make_collectives
from workers.config import Rendezvous, WorkerConfig
from workers.rank.build import BuiltRank, build_rank
from workers.schedule.step import (
    RANKS,
    Compile,
    Compiled,
    Compiles,
    Forget,
    Loading,
    Ping,
    Pong,
    RankFailed,
    RankMessage,
    Ready,
    StepPlan,
    StepResult,
)
from workers.transfer.endpoint import Transfers

# The largest number that CUDA supports.
_MOST_QUEUES = 32
# Seconds between two looks at the device while neither a plan nor the tokens are there.
_POLL_S = 2e-5


class LeaderSocket:
    """The connection to the leader: plans come in, results and transfer events go out, from any thread."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lock = threading.Lock()

    def send(self, message: RankMessage) -> None:
        """Send one message; a leader that is gone is noticed by `receive`."""
        frame = RANKS.encode(message)
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError:
            return

    def receive(self) -> RankMessage | None:
        """Receive the next message; None once the leader is gone."""
        try:
            return RANKS.read_blocking(self._exactly)
        except (EOFError, OSError):
            return None

    def waits(self, seconds: float) -> bool:
        """Whether a message comes within so many seconds."""
        return bool(select.select((self._socket,), (), (), seconds)[0])

    def _exactly(self, count: int) -> bytes:
        data = self._socket.recv(count, socket.MSG_WAITALL)
        if len(data) < count:
            raise EOFError
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def rank_main(
    config: WorkerConfig, worker_id: str, rank: int, endpoint: str, rendezvous: Rendezvous, gpu: int | None = None
) -> None:
    """Load, say ready, then run plans until the leader goes away.

    endpoint: the leader's Unix socket. gpu: the index of the rank's GPU among those that this process sees; None to
    take the one with the rank's number. Raises what went wrong, after telling the leader.
    """
    # One thread a rank: ranks share the host's cores, and a kernel's sums keep one order.
    torch.set_num_threads(1)
    device = rank_device(config, rank, gpu)
    leader = LeaderSocket(endpoint)
    try:
        collectives = make_collectives(config.collectives, rank, config.tp, rendezvous, device)
        transfers = Transfers(
            rank, worker_id, config.host, device, config.channel, leader.send, config.secret, config.tp
        )
        try:

            def loading(stage: str, done: int, total: int) -> None:
                leader.send(Loading(rank, stage, done, total))

            built = build_rank(config, collectives, transfers, leader.send, tell=loading)
            leader.send(
                Ready(
                    rank,
                    os.getpid(),
                    socket.gethostname(),
                    str(device),
                    transfers.host,
                    transfers.port,
                    built.pages,
                    built.model.config.drafts,
                )
            )
            if device.type == "cuda":
                _tell_of_compilations(leader, rank)
            _serve(leader, built, rank, transfers)
        finally:
            transfers.close()
            collectives.close()
    except BaseException as error:
        leader.send(RankFailed(rank, "".join(traceback.format_exception_only(error)).strip()))
        raise
    finally:
        leader.close()


def _serve(leader: LeaderSocket, built: BuiltRank, rank: int, transfers: Transfers) -> None:
    def compiled(grammar: Grammar, error: str | None) -> None:
        leader.send(Compiled(grammar, error))

    def told(result: StepResult) -> None:
        if rank == 0:
            leader.send(result)

    runner = built.runner
    try:
        while True:
            # While the device computes, the next plan may come: it is launched before this step's tokens are read.
            while not runner.ready and not leader.waits(_POLL_S):
                pass
            if runner.ready:
                runner.finish()
            if (message := leader.receive()) is None:
                break
            match message:
                case StepPlan():
                    transfers.lending.stepped()
                    runner.start(message, told)
                    if (stats := runner.stats()) is not None:
                        leader.send(stats)
                case Ping():
                    leader.send(Pong(rank))
                case Compile():
                    built.grammars.submit(message.grammar, compiled)
                case Forget():
                    built.grammars.forget(message.grammar)
                case _:
                    raise WireError(f"{type(message).__name__} does not come from a leader")
    finally:
        built.grammars.close()
        built.host.close()


def _tell_of_compilations(leader: LeaderSocket, rank: int) -> None:
    """Report compilations of kernels within a step, so that the leader does not count the step as hung."""
    from triton import knobs  # noqa: PLC0415 - only where there is a GPU

    def begins(*_: object, **__: object) -> None:
        leader.send(Compiles(rank))

    knobs.runtime.jit_cache_hook = begins


def rank_device(config: WorkerConfig, rank: int, gpu: int | None) -> torch.device:
    """This rank's device, made the current one."""
    if config.device == "cpu":
        return torch.device("cpu")
    # Read when the GPU is first used. Streams that share a queue wait for each other: the forward pass, sums over
    # ranks and each link have their own, and 8 queues, the default, are fewer than that.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(_MOST_QUEUES))
    device = torch.device("cuda", rank % torch.cuda.device_count() if gpu is None else gpu)
    torch.cuda.set_device(device)
    return device
