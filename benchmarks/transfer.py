"""Measures what a hand-off costs: a snapshot through each channel between two processes, against a plain copy.

`python -m benchmarks.transfer` prints a table of medians. A move is timed from queueing the snapshot, which the
receiver has already asked for, to the receiver's acknowledgement of all of it. The copy is one memcpy of the same bytes
to memory already in use. Moves and copies take turns. Both processes share one machine, so read the ratios. NIXL is
measured where it is installed.
"""

import multiprocessing
import queue
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Literal

import torch
from torch import Tensor

from workers.schedule.step import Expect, Export, Link, LinkLost, Received, Sent
from workers.transfer.endpoint import Transfers
from workers.transfer.nixl_agent import ability

Channel = Literal["shm", "gloo", "nixl"]
Snapshot = tuple[Tensor, Tensor]
_CHANNELS: tuple[Channel, ...] = ("shm", "gloo") if ability() == "none" else ("shm", "gloo", "nixl")
_HOST = "127.0.0.1"
_RUNS = 15
_WARM = 2


def _cases() -> dict[str, Snapshot]:
    """The snapshots to move: 64 MiB, nearly all of it latents; and 2,000 tokens of a model that fits a laptop."""
    return {
        "64 MiB": (torch.rand(14_560, 4, 288), torch.rand(1, 32, 16, 16)),
        "2,000 tokens, small model": (torch.rand(2000, 2, 40), torch.rand(6, 4, 16, 16)),
    }


def _receive(pipe: Connection, channel: Channel, port: int) -> None:
    """Run the decode rank's process: receive each snapshot that the pipe announces, until it sends None."""
    torch.set_num_threads(1)
    events: queue.Queue[Received | Sent | LinkLost] = queue.Queue()
    transfers = Transfers(0, "decode", _HOST, torch.device("cpu"), channel, events.put)
    transfers.link(Link("prefill", _HOST, port))
    while (told := pipe.recv()) is not None:
        request_id, tokens = told
        transfers.expect(Expect(request_id, "prefill", tokens))
        pipe.send(None)
        event = events.get()
        if not isinstance(event, Received):
            raise RuntimeError(f"the link failed: {event}")
        transfers.take(request_id)
    transfers.close()


class Mover:
    """A prefill rank in this process, linked to a decode rank in another one."""

    def __init__(
        self, transfers: Transfers, events: "queue.Queue[Received | Sent | LinkLost]", pipe: Connection
    ) -> None:
        self._transfers = transfers
        self._events = events
        self._pipe = pipe
        self._count = 0

    def move(self, snapshot: Snapshot) -> float:
        """Move a snapshot (latents [tokens, layers, width], state); returns the seconds it takes."""
        latents, state = snapshot
        request_id = str(self._count)
        self._count += 1
        self._pipe.send((request_id, len(latents)))
        self._pipe.recv()
        begun = time.perf_counter()
        self._transfers.send(Export(request_id, "decode", 0, (), 0, len(latents), True), latents, state)
        event = self._events.get()
        taken = time.perf_counter() - begun
        if not isinstance(event, Sent):
            raise RuntimeError(f"the link failed: {event}")
        return taken


@contextmanager
def mover(channel: Channel) -> Iterator[Mover]:
    """Link two ranks over a channel; they end with the block."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    events: queue.Queue[Received | Sent | LinkLost] = queue.Queue()
    transfers = Transfers(0, "prefill", _HOST, torch.device("cpu"), channel, events.put)
    child = context.Process(target=_receive, args=(there, channel, transfers.port), daemon=True)
    child.start()
    there.close()
    try:
        yield Mover(transfers, events, here)
        here.send(None)
        child.join(30)
    finally:
        transfers.close()
        child.kill()
        child.join()


def copy(snapshot: Snapshot, targets: Snapshot) -> float:
    """Copy a snapshot to `targets`; returns the seconds it takes."""
    begun = time.perf_counter()
    for target, tensor in zip(targets, snapshot, strict=True):
        target.copy_(tensor)
    return time.perf_counter() - begun


def main() -> None:
    """Measure all channels and print the table."""
    torch.set_num_threads(1)
    print(f"{'snapshot':28}{'bytes':>12}{'memcpy':>10}" + "".join(f"{c:>10}{'ratio':>8}" for c in _CHANNELS))
    with ExitStack() as stack:
        movers = {channel: stack.enter_context(mover(channel)) for channel in _CHANNELS}
        for name, snapshot in _cases().items():
            targets = (torch.zeros_like(snapshot[0]), torch.zeros_like(snapshot[1]))
            runs = [
                [copy(snapshot, targets), *(m.move(snapshot) for m in movers.values())] for _ in range(_WARM + _RUNS)
            ][_WARM:]
            plain, *moved = (statistics.median(column) for column in zip(*runs, strict=True))
            size = sum(t.numel() * t.itemsize for t in snapshot)
            columns = "".join(f"{m * 1e3:7.2f} ms{m / plain:7.1f}x" for m in moved)
            print(f"{name:28}{size:12,}{plain * 1e3:7.2f} ms{columns}")


if __name__ == "__main__":
    main()
