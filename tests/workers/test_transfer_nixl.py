"""Tests links over real NIXL, in CPUs' memory. Tests of all channels also run over it."""

import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.workers.transfer_ends import (
    HOST,
    NEEDS_NIXL,
    WAIT_S,
    End,
    ends,
    export,
    process,
    snapshot,
)
from workers.schedule.step import Expect, Link
from workers.transfer import endpoint, negotiation, nixl_agent
from workers.transfer.channel import LinkBroken
from workers.transfer.messages import NixlOffer
from workers.transfer.nixl import PIECE, NixlReceiver, NixlSender
from workers.transfer.nixl_agent import Memory

pytestmark = [pytest.mark.process, pytest.mark.timeout(120), NEEDS_NIXL]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = set(threading.enumerate())
    made: list[Memory] = []
    make = Memory.__init__

    def making(memory: Memory, size: int, device: torch.device, host: str) -> None:
        make(memory, size, device, host)
        made.append(memory)

    monkeypatch.setattr(Memory, "__init__", making)
    yield
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("transfer")]
    # A link's registered memory and its agent go with it.
    assert not [memory for memory in made if hasattr(memory, "bytes") or hasattr(memory, "_agent")]


def _two_parts(pipe: Connection) -> None:
    """Run a prefill rank that sends a second part once it is told to, and reports what it has sent."""
    torch.set_num_threads(1)
    end = End("P", "nixl")
    latents, state = snapshot(5, 60_000)
    pipe.send(end.transfers.port)
    export(end, "r", 0, latents[:50_000], None)
    pipe.recv()
    export(end, "r", 50_000, latents[50_000:], state)
    end.wait_sent("r")
    pipe.send(end.transfers.sent.bytes)
    pipe.poll(None)


def test_parts_leave_as_they_are_computed_and_every_byte_moves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    arrived = threading.Event()
    read, receive = Memory.read, NixlReceiver.receive

    def counting(memory: Memory, at: int, address: int, gpu: int | None, size: int) -> Any:
        copied.append(size)
        return read(memory, at, address, gpu, size)

    def telling(channel: NixlReceiver, piece: torch.Tensor) -> None:
        receive(channel, piece)
        arrived.set()

    monkeypatch.setattr(Memory, "read", counting)
    monkeypatch.setattr(NixlReceiver, "receive", telling)
    latents, state = snapshot(5, 60_000)
    decode = End("D", "nixl")
    try:
        with process(_two_parts) as (_, pipe):
            decode.transfers.link(Link("P", HOST, pipe.recv()))
            decode.transfers.expect(Expect("r", "P", len(latents)))
            # The other process has not computed the rest.
            assert arrived.wait(WAIT_S)
            pipe.send(None)
            decode.wait_received("r")
            received = decode.transfers.take("r")
            assert torch.equal(torch.cat([rows for _, rows in received.parts]), latents)
            assert torch.equal(received.state, state)
            logical = latents.nbytes + state.nbytes
            assert pipe.recv() == decode.transfers.received.bytes == logical
            # Beside them the nonce, once at the handshake and once for each of three tensors.
            assert sum(copied) == logical + 4 * 16
    finally:
        decode.transfers.close()


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_an_end_that_closes_in_the_middle_frees_all_memory(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = threading.Event()
    receive = NixlReceiver.receive

    def telling(channel: NixlReceiver, piece: torch.Tensor) -> None:
        receive(channel, piece)
        moved.set()

    monkeypatch.setattr(NixlReceiver, "receive", telling)
    with ends("nixl") as (prefill, decode):
        for index in range(256):
            export(prefill, "big", index * 1024, torch.zeros(1024, 1, 256), None)
        decode.transfers.expect(Expect("big", "P", 1 << 20))
        assert moved.wait(WAIT_S)
        (prefill if side == "prefill" else decode).transfers.close()
        lost = (decode if side == "prefill" else prefill).wait_lost()
        assert lost.request_ids == ("big",)
        assert decode.transfers.pending == 0


def test_the_memory_of_a_closed_sender_is_not_taken_as_a_piece() -> None:
    """The sender's memory may belong to something else by then."""
    filled: list[Any] = []
    to: Any = SimpleNamespace(send=filled.append)
    back: Any = SimpleNamespace(send=lambda message: None, receive=lambda: filled[-1], gone=lambda: False)
    sender = NixlSender(to, CPU, HOST)
    receiver = NixlReceiver(back, sender.offer, CPU, HOST)
    try:
        sender.stand()
        room = torch.empty(100, dtype=torch.uint8)
        piece = torch.arange(100, dtype=torch.uint8)
        sender.send(piece)
        receiver.receive(room)
        assert torch.equal(room, piece)
        # As `close` does, before the memory goes.
        sender._bytes[:16].zero_()
        with pytest.raises(LinkBroken, match="or it has closed the link"):
            receiver.receive(room)
    finally:
        receiver.close()
        sender.close()


def test_an_offer_of_other_slots_is_refused() -> None:
    sender = NixlSender(SimpleNamespace(), CPU, HOST)  # type: ignore[arg-type]
    try:
        offer = NixlOffer(sender.offer.agent, sender.offer.address, None, 1, PIECE, b"")
        with pytest.raises(LinkBroken, match="the sender has 1 slots"):
            NixlReceiver(SimpleNamespace(), offer, CPU, HOST)  # type: ignore[arg-type]
    finally:
        sender.close()


def test_nobody_outside_the_host_reaches_a_link_on_loopback() -> None:
    with ends("nixl") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 8))
        export(prefill, "r", 0, *snapshot(0, 8))
        decode.wait_received("r")
        own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)}
        listening = [line.split() for name in ("tcp", "tcp6") for line in _lines(Path("/proc/net") / name)]
        addresses = {row[1].partition(":")[0] for row in listening if row[3] == "0A" and f"socket:[{row[9]}]" in own}
        assert addresses == {"0100007F"}


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def _lines(table: Path) -> list[str]:
    return table.read_text().splitlines()[1:] if table.exists() else []


def test_a_rank_without_nixl_is_linked_by_another_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver's hail says that it has no NIXL."""

    def fail(*_: object) -> None:
        raise AssertionError("NIXL was tried")

    said = iter(("none", "rdma"))
    hosts = iter(("here", "there"))
    monkeypatch.setattr(negotiation, "ability", lambda: next(said))
    monkeypatch.setattr(negotiation, "machine", lambda: next(hosts))
    monkeypatch.setattr(NixlSender, "__init__", fail)
    _moves()


def test_auto_falls_back_if_rdma_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """With devices that UCX can't use, NIXL refuses at the sender."""
    hosts = iter(("here", "there"))
    monkeypatch.setattr(negotiation, "ability", lambda: "rdma")
    monkeypatch.setattr(negotiation, "machine", lambda: next(hosts))
    monkeypatch.setattr(nixl_agent, "_transports", lambda host: "TLS=no-such-transport")
    _moves()


def test_auto_falls_back_where_the_receiver_can_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LinkBroken("nixl: unreachable")

    hosts = iter(("here", "there"))
    monkeypatch.setattr(negotiation, "ability", lambda: "rdma")
    monkeypatch.setattr(negotiation, "machine", lambda: next(hosts))
    monkeypatch.setattr(Memory, "meet", refuse)
    _moves()


def _moves() -> None:
    latents, state = snapshot(0, 8)
    with ends("auto") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 8))
        export(prefill, "r", 0, latents, state)
        decode.wait_received("r")
        assert torch.equal(decode.transfers.take("r").state, state)


def test_a_rank_that_is_to_use_nixl_and_has_none_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "ability", lambda: "none")
    with pytest.raises(RuntimeError, match=r"handoff\.channel: nixl is not installed here: pip install"):
        End("P", "nixl")
