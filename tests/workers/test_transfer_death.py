"""Processes killed in the middle of a transfer: the other end knows at once, and nothing is left behind."""

import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import pytest
import torch

from tests.workers.transfer_ends import (
    HOST,
    WAIT_S,
    End,
    arenas,
    export,
    process,
    receiving_process,
    sending_process,
)
from workers.schedule.step import Expect, Link
from workers.transfer import incoming, outgoing

Channel = Literal["auto", "shm", "gloo"]
# Far more than can move before the kill.
MEGABYTES = 8192
TOKENS = MEGABYTES * 1024
# No clock of the transfer layer is as short: what is told within it was told by the end of a connection.
_AT_ONCE_S = 10.0

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not arenas()
    # An arena has no name anywhere: only a process that maps it keeps it.
    assert not [name for name in os.listdir("/dev/shm") if "transfer" in name]


def _under_way(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> threading.Event:
    """Set once the third tensor has moved through `module.name`."""
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


@pytest.mark.parametrize("channel", ["shm", "gloo"])
def test_a_killed_sender(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = End("D", channel)
    moved = _under_way(monkeypatch, incoming, "receive_tensor")
    with process(sending_process, channel, MEGABYTES) as (child, pipe):
        assert pipe.poll(WAIT_S)
        decode.transfers.link(Link("P", HOST, pipe.recv()))
        decode.transfers.expect(Expect("big", "P", TOKENS))
        assert moved.wait(WAIT_S)
        child.kill()
        lost = decode.wait_lost(seconds=_AT_ONCE_S)
        assert (lost.peer, lost.request_ids) == ("P", ("big",))
        assert decode.transfers.pending == 0
    decode.transfers.close()


@pytest.mark.parametrize("channel", ["shm", "gloo"])
def test_a_killed_receiver(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = End("P", channel)
    part = torch.zeros(1024, 1, 256)
    moved = _under_way(monkeypatch, outgoing, "send_tensor")
    with process(receiving_process, channel, prefill.transfers.port, TOKENS) as (child, _):
        for index in range(MEGABYTES):
            export(prefill, "big", index * 1024, part, None)
        assert moved.wait(WAIT_S)
        child.kill()
        lost = prefill.wait_lost(seconds=_AT_ONCE_S)
        assert (lost.peer, lost.request_ids) == ("D", ("big",))
        assert prefill.transfers.pending == 0
    prefill.transfers.close()
