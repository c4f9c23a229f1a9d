"""Tests processes killed or stopped within a transfer: the other end notices, and nothing is left behind."""

import os
import signal
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import pytest
import torch

from tests.workers.transfer_ends import (
    CHANNELS,
    HOST,
    NEEDS_NIXL,
    WAIT_S,
    End,
    arenas,
    ends,
    export,
    process,
    receiving_process,
    sending_process,
    snapshot,
)
from workers.schedule.step import Expect, Link
from workers.transfer import incoming, outgoing

Channel = Literal["auto", "shm", "gloo", "nixl"]
# Far more than can move before the kill.
MEGABYTES = 8192
TOKENS = MEGABYTES * 1024

pytestmark = [pytest.mark.process, pytest.mark.timeout(280)]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not arenas()
    # An arena has no name anywhere: only a process that maps it keeps it.
    assert not [name for name in os.listdir("/dev/shm") if "transfer" in name]


def _under_way(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> threading.Event:
    """An event that is set once the third tensor has moved through `module.name`."""
    moved = threading.Event()
    counted: list[None] = []
    inner = getattr(module, name)

    def counting(*args: Any) -> Any:
        result = inner(*args)
        counted.append(None)
        if len(counted) == 3:
            moved.set()
        return result

    monkeypatch.setattr(module, name, counting)
    return moved


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_killed_sender(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = End("D", channel)
    moved = _under_way(monkeypatch, incoming, "receive_tensor")
    with process(sending_process, channel, MEGABYTES) as (child, pipe):
        assert pipe.poll(WAIT_S)
        decode.transfers.link(Link("P", HOST, pipe.recv()))
        decode.transfers.expect(Expect("big", "P", TOKENS))
        assert moved.wait(WAIT_S)
        child.kill()
        lost = decode.wait_lost()
        assert (lost.peer, lost.request_ids) == ("P", ("big",))
        assert decode.transfers.pending == 0
    decode.transfers.close()


@pytest.mark.parametrize(
    ("channel", "by"),
    [
        ("shm", signal.SIGKILL),
        ("shm", signal.SIGSTOP),
        ("gloo", signal.SIGKILL),
        ("gloo", signal.SIGSTOP),
        # A stopped receiver empties no slot, as with shm.
        pytest.param("nixl", signal.SIGKILL, marks=NEEDS_NIXL),
    ],
)
def test_a_killed_or_stopped_receiver(channel: Channel, by: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = End("P", channel)
    part = torch.zeros(1024, 1, 256)
    moved = _under_way(monkeypatch, outgoing, "send_tensor")
    with process(receiving_process, channel, prefill.transfers.port, TOKENS) as (child, _):
        for index in range(MEGABYTES):
            export(prefill, "big", index * 1024, part, None)
        assert moved.wait(WAIT_S)
        assert child.pid is not None
        os.kill(child.pid, by)
        lost = prefill.wait_lost()
        assert (lost.peer, lost.request_ids) == ("D", ("big",))
        assert prefill.transfers.pending == 0
    prefill.transfers.close()


@pytest.mark.parametrize("channel", ["shm", "gloo"])
def test_a_sender_that_stops_within_a_part(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender is alive, and its connections are open."""
    release = threading.Event()
    monkeypatch.setattr(outgoing, "send_tensor", lambda *_: release.wait(WAIT_S))
    with ends(channel) as (prefill, decode):
        decode.transfers.expect(Expect("stuck", "P", 8))
        export(prefill, "stuck", 0, *snapshot(1, 8))
        assert decode.wait_lost().request_ids == ("stuck",)
        assert prefill.wait_lost().request_ids == ("stuck",)
        release.set()
        assert (prefill.transfers.pending, decode.transfers.pending) == (0, 0)
