"""Tests a worker's connections to the workers it pulls from, when one can't be reached."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.workers.test_handoffs import info
from wire.codec import CLUSTER
from wire.handshake import accept
from wire.liveness import SILENT_S, AwakeClock
from wire.protocol import Beat, Header, PeerRef, PullRefused
from wire.tls import listen
from workers.leader.peers import PeerRefused, Peers

pytestmark = pytest.mark.process


class Far:
    """A fake leader that a decode worker pulls from; it sends nothing by itself."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.called = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer, "")
        await CLUSTER.read(reader)
        writer.write(CLUSTER.encode(info("p", "prefill")))
        self.writers.append(writer)
        self.called.set()
        await reader.read()
        writer.close()


@asynccontextmanager
async def peers(far: Far) -> AsyncIterator[tuple[Peers, AwakeClock, PeerRef, list[str]]]:
    server = await listen(far.serve, "127.0.0.1")
    lost: list[str] = []
    clock = AwakeClock(0.0)

    def ignore(worker_id: str, message: Header | PullRefused) -> None:
        raise AssertionError(message)

    own = Peers(info("d", "decode"), "", clock, lambda _: None, ignore, lambda _, reason: lost.append(reason))
    try:
        yield own, clock, PeerRef("p", "127.0.0.1", server.sockets[0].getsockname()[1]), lost
    finally:
        own.close()
        server.close()


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.005)


def test_a_silent_peer_is_given_up_until_it_answers_again() -> None:
    async def run() -> None:
        far = Far()
        async with peers(far) as (own, clock, ref, lost):
            peer = await own.connect(ref)
            clock.s += SILENT_S + 0.1
            far.writers[0].write(CLUSTER.encode(Beat()))
            await until(lambda: peer.heard == clock.s)
            own.check()
            assert (lost, own.unreachable) == ([], ())
            clock.s += SILENT_S + 0.1
            own.check()
            assert lost == ["worker p said nothing for 1.5 s"]
            assert own.unreachable == ("p",)
            with pytest.raises(PeerRefused, match="out of reach"):
                await own.connect(ref)
            await until(lambda: own.unreachable == ())
            assert own.known("p") is not None
            assert len(far.writers) == 2

    asyncio.run(run())


def test_a_peer_that_refuses_connections_is_not_retried() -> None:
    async def run() -> None:
        async with peers(Far()) as (own, _, _, lost):
            with pytest.raises(PeerRefused, match="can't be reached"):
                await own.connect(PeerRef("p", "127.0.0.1", 1))
            assert (lost, own.unreachable) == ([], ())

    asyncio.run(run())
