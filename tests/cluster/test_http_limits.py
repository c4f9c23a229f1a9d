"""Tests the limits on clients: heads that are too long or never end, and answers that are not read."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster import http_limits
from cluster.front import Front
from cluster.http_limits import LimitedHttp
from router.http.entrance import MAX_HEAD_BYTES
from tests.cluster.test_front import SlowApp, free_port

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[Ends]:
    port = free_port()
    front = Front(app, "127.0.0.1", port, grace_s=1)
    front.start()
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()
        if isinstance(app, SlowApp):
            app.release.set()
        await front.close()


async def write_on(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0)


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """Status line and the error's code of the connection's last answer."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], json.loads(body)["error"]["code"]


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx"])
def test_an_endless_request_head_is_a_431(begin: bytes) -> None:
    async def run() -> None:
        async with connected(SlowApp()) as (reader, writer):
            # No more than it reads before it refuses: what is left unread would reset the connection.
            writer.write(begin + b"y" * (MAX_HEAD_BYTES + 1 - len(begin)))
            assert await answer(reader) == (b"HTTP/1.1 431 Request Header Fields Too Large", "head_too_large")

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"])
def test_a_request_head_that_does_not_arrive_is_a_408(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http_limits, "HEAD_TIMEOUT_S", 0.05)

    async def run() -> None:
        async with connected(SlowApp()) as (reader, writer):
            writer.write(sent)
            assert await answer(reader) == (b"HTTP/1.1 408 Request Timeout", "head_timeout")

    asyncio.run(run())


def test_a_running_answer_has_no_time_limit_and_the_next_head_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "HEAD_TIMEOUT_S", 0.05)

    async def run() -> None:
        app = SlowApp()
        async with connected(app) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await app.asked.wait()
            await asyncio.sleep(0.1)
            app.release.set()
            assert await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"\r\n")
            assert await answer(reader) == (b"HTTP/1.1 408 Request Timeout", "head_timeout")

    asyncio.run(run())


def test_endless_trailers_close_the_connection() -> None:
    async def run() -> None:
        app = SlowApp()
        async with connected(app) as (_, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
            await app.asked.wait()
            with pytest.raises(ConnectionError):
                await write_on(writer, b"t: " + b"y" * 4096 + b"\r\n")

    asyncio.run(run())


class Flood:
    """An application that sends more than sockets buffer: in endless pieces, or at once."""

    def __init__(self, endless: bool) -> None:
        self.endless = endless
        self.sent = asyncio.Event()  # all of it, or all that will ever be
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        watch = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while self.endless and not watch.done():
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"x" * (16 << 20)})
        self.sent.set()
        assert (await watch)["type"] == "http.disconnect"
        self.left.set()


@pytest.mark.parametrize("endless", [True, False])
def test_a_client_that_stops_reading_is_cut_off(monkeypatch: pytest.MonkeyPatch, endless: bool) -> None:
    monkeypatch.setattr(http_limits, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(http_limits, "LEAST_BYTES_PER_S", 1 << 30)

    lose = LimitedHttp.connection_lost

    async def run() -> None:
        app, cut = Flood(endless), asyncio.Event()

        def lost(protocol: LimitedHttp, error: Exception | None) -> None:
            lose(protocol, error)
            cut.set()

        monkeypatch.setattr(LimitedHttp, "connection_lost", lost)
        async with connected(app) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await app.sent.wait()
            await app.left.wait()
            await cut.wait()
            received = 0
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 20):
                    received += len(data)
            assert received < 16 << 20

    asyncio.run(run())


def test_a_client_that_reads_in_time_gets_the_whole_answer() -> None:
    async def run() -> None:
        async with connected(Flood(endless=False)) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).count(b"x") >= 16 << 20

    asyncio.run(run())


def test_an_answer_to_http_1_0_has_no_chunks() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for part in (b"data: 1\n\n", b"", b"data: 2\n\n"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        async with connected(app) as (reader, writer):
            writer.write(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head.lower()
            assert body == b"data: 1\n\ndata: 2\n\n"

    asyncio.run(run())
