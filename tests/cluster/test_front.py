"""Tests a router's own HTTP server: a shared port, draining, and an end that waits for streams."""

import asyncio
import socket

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from cluster.front import Front

pytestmark = pytest.mark.timeout(120)


class SlowApp:
    """An application that answers once it is released."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        self.asked.set()
        await self.release.wait()
        await send({"type": "http.response.body", "body": b"last"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def get(port: int) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/")).text


def test_closing_waits_for_the_stream_and_refuses_new_connections() -> None:
    async def run() -> None:
        app, port = SlowApp(), free_port()
        front = Front(app, "127.0.0.1", port, grace_s=20)
        front.start()
        streaming = asyncio.create_task(get(port))
        await app.asked.wait()
        front.stop_accepting()
        drained = asyncio.create_task(front.drained())
        closing = asyncio.create_task(front.close())
        while await _accepts(port):
            await asyncio.sleep(0.01)
        assert not drained.done()
        assert not closing.done()
        app.release.set()
        assert await streaming == "first last"
        await drained
        await closing

    asyncio.run(run())


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def test_two_replicas_share_a_port() -> None:
    async def run() -> None:
        port = free_port()
        apps = [SlowApp(), SlowApp()]
        fronts = [Front(app, "127.0.0.1", port, grace_s=5) for app in apps]
        for front, app in zip(fronts, apps, strict=True):
            app.release.set()
            front.start()
        # The kernel deals connections out by a hash of their addresses.
        while not all(app.asked.is_set() for app in apps):
            assert await get(port) == "first last"
        for front in fronts:
            await front.close()

    asyncio.run(run())


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match="assign"):
        Front(SlowApp(), "203.0.113.1", free_port(), grace_s=1)


def test_connections_made_before_it_stopped_accepting_are_answered() -> None:
    """One connection was accepted and one not yet; neither has sent a request."""

    async def run() -> None:
        app, port = SlowApp(), free_port()
        app.release.set()
        front = Front(app, "127.0.0.1", port, grace_s=5)
        front.start()
        assert await get(port) == "first last"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        waiting = socket.create_connection(("127.0.0.1", port))  # the loop has no time to accept it
        front.stop_accepting()
        request = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        waiting.sendall(request)
        writer.write(request)
        late_reader, late_writer = await asyncio.open_connection(sock=waiting)
        for stream in (reader, late_reader):
            assert b"last" in await stream.read()
        writer.close()
        late_writer.close()
        await front.close()

    asyncio.run(run())
