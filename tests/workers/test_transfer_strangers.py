"""Tests transfer links of callers that do not know the cluster's secret."""

import socket

import pytest

from tests.workers.transfer_ends import HOST, End
from workers.schedule.step import Link, LinkLost

pytestmark = pytest.mark.process


def test_a_transfer_link_of_a_stranger_is_refused() -> None:
    decode, prefill = End("decode", "auto", secret="s"), End("prefill", "auto", secret="t")
    try:
        decode.transfers.link(Link("prefill", HOST, prefill.transfers.port))
        lost = decode.wait(lambda event: isinstance(event, LinkLost))
        assert isinstance(lost, LinkLost)
        assert "does not know this cluster's secret" in lost.reason
        assert not prefill.events
    finally:
        decode.transfers.close()
        prefill.transfers.close()


def test_a_transfer_link_never_reads_a_strangers_message() -> None:
    prefill = End("prefill", "auto", secret="s")
    try:
        with socket.create_connection((HOST, prefill.transfers.port), timeout=10) as stranger:
            # A frame that announces 200 MB.
            stranger.sendall((200 << 20).to_bytes(4, "little") + b"\0" * 60)
            assert len(stranger.recv(32, socket.MSG_WAITALL)) == 32
            while stranger.recv(4096):
                pass
    finally:
        prefill.transfers.close()
