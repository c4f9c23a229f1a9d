"""Helpers for tests of transfers: an end with its notifications, random snapshots, and a peer process."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.forks import FORKS
from workers.schedule.step import Expect, Export, Link, LinkLost, Received, Sent
from workers.transfer.endpoint import Transfers
from workers.transfer.nixl_agent import ability

Event = Received | Sent | LinkLost
HOST = "127.0.0.1"
WAIT_S = 90.0
NEEDS_NIXL = pytest.mark.skipif(ability() == "none", reason="NIXL is not installed: pip install nixl-cu13 (Linux only)")
# Every channel that a CPU has, as a test's parameters.
CHANNELS = ("shm", "gloo", pytest.param("nixl", marks=NEEDS_NIXL))


def arenas() -> list[str]:
    """The arenas this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "ling-transfer" in line]


class End:
    """One rank's `Transfers`, and its notifications so far."""

    def __init__(
        self,
        worker_id: str,
        channel: Literal["auto", "shm", "gloo", "nccl", "nixl"],
        rank: int = 0,
        secret: str = "",
        ranks: int = 1,
    ) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self.worker_id = worker_id
        self.transfers = Transfers(rank, worker_id, HOST, torch.device("cpu"), channel, self._notify, secret, ranks)

    def _notify(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, wanted: Callable[[Event], bool], seconds: float = WAIT_S) -> Event:
        """Wait for the first past or future notification that `wanted` accepts."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(wanted, self.events)), seconds), self.events
            return next(filter(wanted, self.events))

    def wait_sent(self, request_id: str) -> None:
        """Wait until a snapshot is sent completely."""
        self.wait(lambda e: isinstance(e, Sent) and e.request_id == request_id)

    def wait_received(self, request_id: str) -> None:
        """Wait until a snapshot has arrived completely."""
        self.wait(lambda e: isinstance(e, Received) and e.request_id == request_id)

    def wait_lost(self, seconds: float = WAIT_S) -> LinkLost:
        """Wait for the first LinkLost."""
        event = self.wait(lambda e: isinstance(e, LinkLost), seconds)
        assert isinstance(event, LinkLost)
        return event

    def link_to(self, other: "End") -> None:
        """Connect to a peer as a receiver."""
        self.transfers.link(Link(other.worker_id, other.transfers.host, other.transfers.port))


@contextmanager
def ends(channel: Literal["auto", "shm", "gloo", "nixl"]) -> Iterator[tuple[End, End]]:
    """A prefill rank P and a decode rank D of one process, linked; closed at the end, which must free everything."""
    prefill, decode = End("P", channel), End("D", channel)
    try:
        decode.link_to(prefill)
        yield prefill, decode
    finally:
        decode.transfers.close()
        prefill.transfers.close()


def snapshot(seed: int, tokens: int, layers: int = 2, width: int = 40) -> tuple[Tensor, Tensor]:
    """Random latents [tokens, layers, width] and a random state."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(tokens, layers, width, generator=generator).to(torch.bfloat16)
    return latents, torch.randn(6, 4, 16, 16, generator=generator)


def shard(latents: Tensor, rank: int, size: int) -> Tensor:
    """Rank `rank`'s rows of a part, padded to the others' number; with one rank, the part itself."""
    if size == 1:
        return latents
    share = -(-len(latents) // size)
    rows = latents[rank * share : (rank + 1) * share]
    return torch.cat([rows, rows.new_zeros(share - len(rows), *rows.shape[1:])])


def export(
    end: End, request_id: str, start: int, latents: Tensor, state: Tensor | None, rank: int = 0, size: int = 1
) -> None:
    """Send one part to D as rank `rank` of `size` would."""
    plan = Export(request_id, "D", 0, (), start, start + len(latents), state is not None)
    end.transfers.send(plan, shard(latents, rank, size), state)


def sending_process(pipe: Connection, channel: Literal["auto", "shm", "gloo", "nixl"], megabytes: int) -> None:
    """Run a prefill rank that reports its port and then sends the endless snapshot "big" until it is killed."""
    torch.set_num_threads(1)
    end = End("P", channel)
    pipe.send(end.transfers.port)
    part = torch.zeros(1024, 1, 256)
    for index in range(megabytes):
        export(end, "big", index * 1024, part, None)
    pipe.poll(None)


def receiving_process(
    pipe: Connection, channel: Literal["auto", "shm", "gloo", "nixl"], port: int, tokens: int
) -> None:
    """Run a decode rank that waits for "big" until it is killed."""
    torch.set_num_threads(1)
    end = End("D", channel)
    end.transfers.link(Link("P", HOST, port))
    end.transfers.expect(Expect("big", "P", tokens))
    pipe.poll(None)


@contextmanager
def process(
    target: Callable[..., None], *args: object
) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    """Run a child process; yields it and the pipe to it, and kills it at the end."""
    here, there = FORKS.Pipe()
    child = FORKS.Process(target=target, args=(there, *args), daemon=True)
    child.start()
    there.close()
    try:
        yield child, here
    finally:
        child.kill()
        child.join(WAIT_S)
        here.close()
