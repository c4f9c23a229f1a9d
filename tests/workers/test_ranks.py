"""Tests that the leader gets each kind of message that ranks send besides results."""

import asyncio
from typing import get_args

from wire.liveness import AwakeClock
from wire.protocol import Grammar
from workers.config import Rendezvous, WorkerConfig
from workers.leader.ranks import Event, Ranks
from workers.schedule.step import (
    RANKS,
    Compiled,
    FetchFailed,
    LinkLost,
    Loading,
    Moved,
    RankStats,
    Ready,
    Received,
    Sent,
    WriteFailed,
    Written,
)

EVENTS: list[Event] = [
    Loading(0, "weights", 1, 2),
    Received(0, "a"),
    FetchFailed(0, "a", "its checksum in host memory does not match"),
    Written(0, "/disk/2"),
    WriteFailed(0, "/disk/1", "no space left"),
    Sent(0, "a"),
    LinkLost(0, "decode-0", ("a",), "closed"),
    Compiled(Grammar('start: "a"')),
    RankStats(0, (), Moved(0, 0.0), Moved(0, 0.0)),
]


def test_every_event_of_a_rank_is_handed_on() -> None:
    async def rank(number: int, endpoint: str, rendezvous: Rendezvous) -> None:
        reader, writer = await asyncio.open_unix_connection(endpoint)
        for message in (*EVENTS, Ready(number, 1, "node", "cpu", "127.0.0.1", 1, 8)):
            writer.write(RANKS.encode(message))
        await reader.read()
        writer.close()

    async def run() -> list[Event]:
        got: list[Event] = []
        ranks = Ranks(WorkerConfig(""), AwakeClock(0.0), got.append)
        await ranks.start(rank)
        await ranks.close()
        return got

    assert {type(e) for e in EVENTS} == set(get_args(Event))
    assert asyncio.run(run()) == EVENTS
