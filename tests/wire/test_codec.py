"""Tests that frames carry every message unchanged, and that other bytes are refused."""

import asyncio
from typing import get_args

import pytest

from wire import protocol as p
from wire.codec import CLUSTER, MAX_FRAME, WireError
from wire.tokens import TokenIds

SAMPLING = p.SamplingParams(max_tokens=3, seed=2**62, logit_bias=((5, -1.5),), stop_token_ids=(1, 2), logprobs=0)
LOGPROB = p.TokenLogprob(5, -0.25, (5, 6), (-0.25, -1.5))
MESSAGES: list[p.Message] = [
    p.Hello("r", "router"),
    p.Submit("a", TokenIds.of((1, 2, 3)), SAMPLING, -1, handoff=True),
    p.Submit("a", TokenIds.of((1, 2)), SAMPLING, 0, p.PeerRef("w", "h", 1)),
    p.Submit("a", TokenIds.of((1, 2)), SAMPLING, generated=1),
    p.Abort("a"),
    p.Find(b"k"),
    p.Found(b"k", "r", b"b"),
    p.Attach("r"),
    p.StepOutputs(
        7,
        2,
        p.Load(1, 2, 3, 4, 5, 6, 0.5),
        (p.SeqOutput("a", 0, (9,), (LOGPROB,), (None, LOGPROB), "stop", None, timings=p.Timings(0.1, 0.2, 0.3, 0.4)),),
    ),
    p.WorkerInfo(
        "w",
        "decode",
        "h",
        1,
        "n",
        2,
        "wid",
        "lay",
        256,
        64,
        8,
        4,
        512,
        (p.RankInfo(0, 3, "n", "cpu", "h", 4),),
    ),
    p.Pull("a"),
    p.CancelPull("a"),
    p.PullRefused("a", "why", True),
    p.Header("a", 2, "hash", (4,), "lay", "wid"),
    p.Pin("s", (p.Mark(5, b"digest"), p.Mark(3, b"d")), 3600.0),
    p.Unpin("s"),
    p.Park(1, p.Mark(5, b"digest")),
    p.Parked(1, "why"),
    p.Drain(),
    p.SaveFile((p.Mark(5, b"digest"),), TokenIds.of((1, 2)), b"{}"),
    p.LoadFile("scope"),
    p.FilePart(b"bytes"),
    p.FileKept(),
    p.FileRefused("why"),
    p.Beat(),
    p.Move("a"),
]


def read(data: bytes) -> p.Message:
    async def run() -> p.Message:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await CLUSTER.read(reader)

    return asyncio.run(run())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_cluster_message_survives(message: p.Message) -> None:
    assert read(CLUSTER.encode(message)) == message


def test_the_list_above_is_complete() -> None:
    assert {type(m) for m in MESSAGES} == set(get_args(p.Message))


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(WireError, match="unreadable message of type 200"):
        read(b"\x00\x00\x00\x00\xc8")
    with pytest.raises(WireError, match="exceeds"):
        read((MAX_FRAME + 1).to_bytes(4, "little") + b"\x00")
    good = CLUSTER.encode(MESSAGES[0])
    with pytest.raises(WireError, match="unreadable message of type 0"):
        read(good[:5] + b"\xc1" + good[6:])
    with pytest.raises(asyncio.IncompleteReadError):
        read(good[:-1])
