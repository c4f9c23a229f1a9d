"""Tests snapshots between two ranks of one process, on every channel for CPUs."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import torch

from tests.workers.transfer_ends import CHANNELS, HOST, End, arenas, ends, export, shard, snapshot
from workers.model.batch import Caches
from workers.schedule.step import Expect, Export, Link, LinkAll, LinkLost, Received, Sent
from workers.transfer import endpoint, incoming, outgoing
from workers.transfer.channel import LinkBroken
from workers.transfer.messages import Hail
from workers.transfer.negotiation import candidates
from workers.transfer.shm import PIECE, SLOTS
from workers.transfer.snapshot import read_latents, write_latents

Channel = Literal["auto", "shm", "gloo", "nixl"]

pytestmark = [pytest.mark.process, pytest.mark.timeout(200)]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    assert not arenas()
    left = [t for t in threading.enumerate() if t not in threads and t.name.startswith("transfer")]
    assert not left


@pytest.mark.parametrize("channel", CHANNELS)
def test_interleaved_snapshots_arrive_bit_for_bit(channel: Channel) -> None:
    snapshots = {f"r{i}": snapshot(i, tokens) for i, tokens in enumerate((1, 70, 33, 128, 5))}
    with ends(channel) as (prefill, decode), torch.inference_mode():
        for request_id, (latents, _) in snapshots.items():
            decode.transfers.expect(Expect(request_id, "P", len(latents)))
        for start in range(0, 128, 16):
            for request_id, (latents, state) in snapshots.items():
                if start < len(latents):
                    part = latents[start : start + 16].clone()
                    export(prefill, request_id, start, part, state if start + 16 >= len(latents) else None)
        for request_id, (latents, state) in snapshots.items():
            decode.wait_received(request_id)
            received = decode.transfers.take(request_id)
            assert torch.equal(torch.cat([rows for _, rows in received.parts]), latents)
            assert torch.equal(received.state, state)
            assert [n for n, _ in received.parts] == [len(p) for p in latents.split(16)]
            prefill.wait_sent(request_id)
        assert prefill.transfers.pending == decode.transfers.pending == 0


@pytest.mark.parametrize("channel", CHANNELS)
def test_parts_larger_than_the_arena(channel: Channel) -> None:
    tokens = (SLOTS + 3) * PIECE // 1024 + 17  # rows of 1 KiB: more than the arena, and no whole number of pieces
    latents = torch.randint(-(2**31), 2**31 - 1, (tokens, 1, 256), dtype=torch.int32).view(torch.float32)
    with ends(channel) as (prefill, decode):
        export(prefill, "r", 0, latents, torch.zeros(1, 1, 1, 1))
        decode.transfers.expect(Expect("r", "P", tokens))
        decode.wait_received("r")
        ((count, rows),) = decode.transfers.take("r").parts
        assert count == tokens
        assert torch.equal(rows.view(torch.int32), latents.view(torch.int32))


def test_shards_of_all_ranks_join_across_page_sizes() -> None:
    tokens, size = 37, 2
    generator = torch.Generator().manual_seed(3)
    source = Caches(torch.randn(2, 8, 8, 5, generator=generator), torch.zeros(1, 1, 1, 1, 1))
    target = Caches(torch.zeros(2, 20, 3, 5), torch.zeros(1, 1, 1, 1, 1))
    pages, target_pages = (5, 1, 7, 2, 0), tuple(range(19, 6, -1))
    received = []
    for rank in range(size):
        prefill, decode = End("P", "shm", rank, ranks=size), End("D", "shm", rank, ranks=size)
        decode.link_to(prefill)
        decode.transfers.expect(Expect("r", "P", tokens))
        for start, stop in itertools.pairwise((0, 11, 30, tokens)):
            part = read_latents(source, pages[start // 8 : -(-stop // 8)], start, stop)
            export(prefill, "r", start, part, torch.zeros(1) if stop == tokens else None, rank, size)
        decode.wait_received("r")
        received.append(decode.transfers.take("r").parts)
        decode.transfers.close()
        prefill.transfers.close()
    joined = [torch.cat([rows for _, rows in shards])[: shards[0][0]] for shards in zip(*received, strict=True)]
    write_latents(target, target_pages, torch.cat(joined))
    assert torch.equal(read_latents(target, target_pages, 0, tokens), read_latents(source, pages, 0, tokens))


@contextmanager
def groups(channel: Channel, senders: int, receivers: int) -> Iterator[tuple[list[End], list[End]]]:
    """All ranks of two workers, linked."""
    prefill = [End("P", channel, rank, ranks=senders) for rank in range(senders)]
    decode = [End("D", channel, rank, ranks=receivers) for rank in range(receivers)]
    endpoints = LinkAll("P", tuple((end.transfers.host, end.transfers.port) for end in prefill))
    try:
        for rank, end in enumerate(decode):
            end.transfers.link(*endpoints.of(rank, receivers))
        yield prefill, decode
    finally:
        for end in (*decode, *prefill):
            end.transfers.close()


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(("senders", "receivers"), [(4, 2), (2, 1), (1, 2), (1, 4)])
def test_workers_of_other_ranks_share_heads_and_latents_anew(channel: Channel, senders: int, receivers: int) -> None:
    tokens = 37
    latents, state = snapshot(1, tokens)
    with groups(channel, senders, receivers) as (prefill, decode), torch.inference_mode():
        for end in decode:
            end.transfers.expect(Expect("r", "P", tokens))
        for start, stop in itertools.pairwise((0, 1, 30, tokens)):
            for rank, end in enumerate(prefill):
                heads = torch.chunk(state, senders, 1)[rank] if stop == tokens else None
                plan = Export("r", "D", 0, (), start, stop, heads is not None, receivers)
                end.transfers.send(plan, shard(latents[start:stop], rank, senders), heads)
        got = []
        for end in decode:
            end.wait_received("r")
            got.append(end.transfers.take("r"))
        for end in prefill:
            end.wait_sent("r")
            assert sum(isinstance(event, Sent) for event in end.events) == 1
        assert torch.equal(torch.cat([one.state for one in got], 1), state)
        assert [one.split for one in got] == [senders] * receivers
        # Nothing goes twice but what fills shares up.
        rows = sum(len(rows) for one in got for _, rows in one.parts)
        assert tokens <= rows <= tokens + 3 * 3
        for end in (*prefill, *decode):
            assert end.transfers.pending == 0


def test_one_of_several_links_takes_the_whole_snapshot_with_it() -> None:
    latents, state = snapshot(1, 8)
    with groups("shm", 2, 1) as (prefill, (decode,)):
        decode.transfers.expect(Expect("r", "P", 8))
        heads = torch.chunk(state, 2, 1)
        for end, half in zip(prefill, heads, strict=True):
            plan = Export("r", "D", 0, (), 0, 8, True, 1)
            if end is prefill[0]:
                end.transfers.send(plan, latents[:4], half)
                end.wait_sent("r")
        prefill[1].transfers.close()
        assert decode.wait_lost().request_ids == ("r",)
        with pytest.raises(KeyError):
            decode.transfers.take("r")
        assert decode.transfers.pending == 0


def test_a_rank_that_shares_no_heads_is_turned_away() -> None:
    prefill, decode = End("P", "shm", 1, ranks=4), End("D", "shm", 1, ranks=2)
    try:
        decode.link_to(prefill)
        assert "rank 1 of D has come to rank 1" in decode.wait_lost().reason
    finally:
        decode.transfers.close()
        prefill.transfers.close()


def test_state_without_latents_ends_a_snapshot() -> None:
    latents, state = snapshot(0, 20)
    with ends("shm") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 20))
        export(prefill, "r", 0, latents, None)
        export(prefill, "r", 20, latents[20:], state)
        decode.wait_received("r")
        received = decode.transfers.take("r")
        assert [n for n, _ in received.parts] == [20]
        assert torch.equal(received.state, state)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_discarded_snapshot_is_dropped_and_others_go_on(channel: Channel) -> None:
    latents, state = snapshot(0, 64)
    with ends(channel) as (prefill, decode):
        decode.transfers.discard("never heard of")
        for request_id in ("dropped", "kept"):
            decode.transfers.expect(Expect(request_id, "P", 64))
            export(prefill, request_id, 0, latents[:32], None)
        decode.transfers.discard("dropped")
        for request_id in ("dropped", "kept"):
            export(prefill, request_id, 32, latents[32:], state)
        prefill.wait_sent("kept")
        with pytest.raises(KeyError, match="not wholly come"):
            decode.transfers.take("dropped")
        assert torch.equal(decode.transfers.take("kept").state, state)
        # Either its parts met nobody who asked, or the receiver's word that it gave it up came first.
        prefill.transfers.discard("dropped")
        assert prefill.transfers.pending == decode.transfers.pending == 0
        assert all(e.request_id == "kept" for e in decode.events if isinstance(e, Received))


def test_the_sender_learns_that_a_snapshot_was_given_up() -> None:
    latents, state = snapshot(0, 64)
    with ends("shm") as (prefill, decode):
        decode.transfers.expect(Expect("probe", "P", 64))
        decode.transfers.expect(Expect("r", "P", 64))
        export(prefill, "r", 0, latents[:8], None)
        export(prefill, "probe", 0, latents, state)
        prefill.wait_sent("probe")
        decode.transfers.take("probe")
        decode.transfers.discard("r")
        lost = prefill.wait_lost()
        assert (lost.peer, lost.request_ids, lost.reason) == ("D", ("r",), "D gave it up")
        assert prefill.transfers.pending == decode.transfers.pending == 0


def test_the_sender_may_be_early_and_discard() -> None:
    latents, state = snapshot(0, 8)
    prefill, decode = End("P", "shm"), End("D", "shm")
    export(prefill, "early", 0, latents, state)
    export(prefill, "discarded", 0, latents, state)
    prefill.transfers.discard("discarded")
    decode.transfers.link(Link("P", HOST, prefill.transfers.port))
    decode.transfers.expect(Expect("early", "P", 8))
    prefill.wait_sent("early")
    assert torch.equal(decode.transfers.take("early").state, state)
    assert prefill.transfers.pending == decode.transfers.pending == 0
    decode.transfers.close()
    prefill.transfers.close()


def test_a_snapshot_that_no_peer_asks_for_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PATIENCE_S", 0.0)
    monkeypatch.setattr(endpoint, "_TICK_S", 0.01)
    prefill = End("P", "shm")
    export(prefill, "r", 0, *snapshot(0, 8))
    lost = prefill.wait_lost()
    assert (lost.peer, lost.request_ids) == ("D", ("r",))
    assert "did not ask" in lost.reason
    assert prefill.transfers.pending == 0
    prefill.transfers.close()


def test_expecting_over_no_link_and_over_one_that_fails() -> None:
    decode = End("D", "shm")
    decode.transfers.expect(Expect("r", "Q", 8))
    assert decode.wait_lost() == LinkLost(0, "Q", ("r",), "there is no link to it")
    decode.events.clear()
    with socket.create_server((HOST, 0)) as unanswering:
        decode.transfers.link(Link("P", HOST, unanswering.getsockname()[1]))
        decode.transfers.expect(Expect("s", "P", 8))
        connection, _ = unanswering.accept()
        connection.close()
    lost = decode.wait_lost()
    assert (lost.peer, lost.request_ids) == ("P", ("s",))
    assert decode.transfers.pending == 0
    decode.transfers.close()


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_part_that_does_not_belong_breaks_the_link_on_both_sides(channel: Channel) -> None:
    latents, state = snapshot(0, 64)
    with ends(channel) as (prefill, decode):
        decode.transfers.expect(Expect("whole", "P", 64))
        export(prefill, "whole", 0, latents, state)
        prefill.wait_sent("whole")
        decode.transfers.expect(Expect("r", "P", 64))
        export(prefill, "r", 0, latents[:32], None)
        export(prefill, "r", 16, latents[16:], state)
        for end, peer in ((prefill, "D"), (decode, "P")):
            lost = end.wait_lost()
            assert (lost.peer, lost.request_ids) == (peer, ("r",))
        assert "came where one from 32 on was due" in decode.wait_lost().reason
        assert prefill.transfers.pending == 0
        # What had wholly come before is not touched by it, and a new link works.
        decode.link_to(prefill)
        decode.transfers.expect(Expect("next", "P", 64))
        export(prefill, "next", 0, latents, state)
        decode.wait_received("next")
        assert torch.equal(decode.transfers.take("whole").state, state)


def test_unlink_keeps_snapshots_that_have_arrived() -> None:
    latents, state = snapshot(0, 64)
    with ends("shm") as (prefill, decode):
        decode.transfers.expect(Expect("whole", "P", 64))
        decode.transfers.expect(Expect("half", "P", 64))
        export(prefill, "half", 0, latents[:32], None)
        export(prefill, "whole", 0, latents, state)
        prefill.wait_sent("whole")
        decode.transfers.unlink("P")
        lost = prefill.wait_lost()
        assert lost.request_ids == ("half",)
        assert torch.equal(decode.transfers.take("whole").state, state)
        assert decode.transfers.pending == prefill.transfers.pending == 0
        assert not any(isinstance(e, LinkLost) for e in decode.events)


def test_one_link_breaks_and_the_other_serves_on() -> None:
    latents, state = snapshot(0, 64)
    with ends("gloo") as (prefill, decode):
        other = End("Q", "gloo")
        decode.link_to(other)
        for request_id, peer in (("r", "P"), ("s", "Q")):
            decode.transfers.expect(Expect(request_id, peer, 64))
        export(other, "s", 0, latents[:32], None)
        export(prefill, "r", 0, latents[:32], None)
        prefill.transfers.close()
        lost = decode.wait_lost()
        assert (lost.peer, lost.request_ids) == ("P", ("r",))
        export(other, "s", 32, latents[32:], state)
        decode.wait_received("s")
        assert torch.equal(decode.transfers.take("s").state, state)
        other.transfers.close()


@pytest.mark.parametrize("channel", CHANNELS)
def test_links_that_come_and_go_leave_no_descriptor(channel: Channel) -> None:
    latents, state = snapshot(0, 8)
    opened = []
    for _ in range(4):
        with ends(channel) as (prefill, decode):
            decode.transfers.expect(Expect("r", "P", 8))
            export(prefill, "r", 0, latents, state)
            prefill.wait_sent("r")
        opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[1:] == [opened[1]] * 3  # the first may open what the libraries keep


def test_ranks_of_different_numbers_do_not_link() -> None:
    prefill, decode = End("P", "shm", rank=1), End("D", "shm", rank=0)
    decode.link_to(prefill)
    assert decode.wait_lost().reason == "rank 0 of D has come to rank 1"
    decode.transfers.close()
    prefill.transfers.close()


def test_strangers_at_the_port_disturb_nobody() -> None:
    latents, state = snapshot(0, 64)
    with ends("shm") as (prefill, decode):
        with socket.create_connection((HOST, prefill.transfers.port)) as stranger:
            # Longer than the proof that is awaited: what is shorter is waited for until HANDSHAKE_S is over.
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: somebody\r\nUser-Agent: a browser of theirs\r\n\r\n")
            stranger.settimeout(30)
            while stranger.recv(4096):
                pass
        decode.transfers.expect(Expect("r", "P", 64))
        export(prefill, "r", 0, latents, state)
        decode.wait_received("r")


def test_the_state_is_sent_with_the_last_part_only() -> None:
    latents, state = snapshot(0, 8)
    prefill = End("P", "shm")
    with pytest.raises(ValueError, match="the state goes with the last part"):
        prefill.transfers.send(_plan(last=False), latents, state)
    with pytest.raises(ValueError, match="the state goes with the last part"):
        prefill.transfers.send(_plan(last=True), latents, None)
    prefill.transfers.close()
    prefill.transfers.close()


def test_closing_is_prompt_in_the_middle_of_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_CONNECT_S", 300.0)
    monkeypatch.setattr(incoming, "HANDSHAKE_S", 300)
    prefill, decode = End("P", "gloo"), End("D", "gloo")
    decode.transfers.link(Link("nowhere", HOST, _free_port()))
    decode.link_to(prefill)
    decode.transfers.expect(Expect("r", "P", 64))
    export(prefill, "r", 0, snapshot(0, 64)[0][:32], None)
    begun = time.monotonic()
    decode.transfers.close()
    prefill.transfers.close()
    assert time.monotonic() - begun < 60


def _plan(last: bool) -> Export:
    return Export("r", "D", 0, (), 0, 8, last)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _hail(**changes: object) -> Hail:
    own = {"worker_id": "w", "rank": 0, "ranks": 1, "machine": "m", "device": "cpu", "channel": "auto"}
    return Hail(**(own | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "peer", "kinds"),
    [
        ({}, {}, ("shm", "gloo")),
        ({}, {"machine": "other"}, ("gloo",)),
        ({"machine": ""}, {"machine": ""}, ("gloo",)),
        ({"device": "cuda"}, {"device": "cuda"}, ("nccl",)),
        ({"device": "cuda"}, {}, ("gloo",)),
        ({"channel": "gloo"}, {}, ("gloo",)),
        ({}, {"channel": "shm"}, ("shm",)),
        ({"device": "cuda", "channel": "shm"}, {}, ("shm",)),
        ({"device": "cuda", "channel": "gloo"}, {"device": "cuda"}, ("gloo",)),
        ({"nixl": "rdma"}, {"nixl": "rdma"}, ("shm", "gloo")),
        ({"nixl": "rdma"}, {"nixl": "rdma", "machine": "other"}, ("nixl", "gloo")),
        ({"nixl": "rdma", "device": "cuda"}, {"nixl": "rdma", "device": "cuda"}, ("nixl", "nccl")),
        ({"nixl": "rdma", "device": "cuda"}, {"nixl": "tcp", "device": "cuda"}, ("nccl",)),
        ({"nixl": "rdma"}, {"nixl": "none", "machine": "other"}, ("gloo",)),
        ({"nixl": "tcp"}, {"nixl": "tcp", "machine": "other"}, ("gloo",)),
        ({"nixl": "tcp", "channel": "nixl"}, {"nixl": "tcp", "machine": "other"}, ("nixl",)),
    ],
)
def test_which_channels_are_tried(own: dict[str, str], peer: dict[str, str], kinds: tuple[str, ...]) -> None:
    assert candidates(_hail(**own), _hail(**peer)) == kinds


@pytest.mark.parametrize(
    ("own", "peer", "reason"),
    [
        ({"channel": "gloo"}, {"channel": "shm"}, "give both the same"),
        ({"channel": "shm"}, {"machine": "other"}, "on one host"),
        ({"channel": "nccl"}, {}, "needs GPUs on both sides"),
        ({"channel": "nixl", "nixl": "tcp"}, {"worker_id": "v"}, "v has none: pip install"),
    ],
)
def test_impossible_channels_are_refused(own: dict[str, str], peer: dict[str, str], reason: str) -> None:
    with pytest.raises(LinkBroken, match=reason):
        candidates(_hail(**own), _hail(**peer))


def test_auto_falls_back_where_memory_can_not_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no such process here")

    monkeypatch.setattr("workers.transfer.shm.ShmReceiver.__init__", refuse)
    latents, state = snapshot(0, 8)
    with ends("auto") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 8))
        export(prefill, "r", 0, latents, state)
        decode.wait_received("r")
        assert torch.equal(decode.transfers.take("r").state, state)
    explicit_prefill, explicit_decode = End("P", "shm"), End("D", "shm")
    explicit_decode.link_to(explicit_prefill)
    assert "no such process here" in explicit_decode.wait_lost().reason
    explicit_decode.transfers.close()
    explicit_prefill.transfers.close()
