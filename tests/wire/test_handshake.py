"""Tests that both ends of a connection check, before any message, that the other knows the secret."""

import asyncio
from collections.abc import Awaitable

import pytest

from wire.handshake import Acceptor, Caller, StrangerError, accept, call


def test_two_ends_with_the_same_secret_connect() -> None:
    acceptor, caller = Acceptor("s"), Caller("s")
    caller.check(acceptor.answer(caller.answer(acceptor.nonce)))


@pytest.mark.parametrize(("acceptor_knows", "caller_knows"), [("s", ""), ("", "s"), ("s", "t")])
def test_both_ends_refuse_a_stranger(acceptor_knows: str, caller_knows: str) -> None:
    acceptor, caller = Acceptor(acceptor_knows), Caller(caller_knows)
    said = caller.answer(acceptor.nonce)
    with pytest.raises(StrangerError, match="same Ray auth token"):
        acceptor.answer(said)
    with pytest.raises(StrangerError):
        caller.check(Acceptor(acceptor_knows).answer(Caller(acceptor_knows).answer(acceptor.nonce)))


def test_replayed_messages_are_refused() -> None:
    first, again, caller = Acceptor("s"), Acceptor("s"), Caller("s")
    said = caller.answer(first.nonce)
    first.answer(said)
    with pytest.raises(StrangerError):
        again.answer(said)


def test_a_reflected_proof_is_refused() -> None:
    acceptor = Acceptor("s")
    caller = Caller("s")
    said = caller.answer(acceptor.nonce)
    with pytest.raises(StrangerError):
        caller.check(said[32:])


async def _over_streams(acceptor_knows: str, caller_knows: str) -> tuple[object, object]:
    """The errors that the two sides raise; None for none."""
    accepted: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def outcome(work: Awaitable[None]) -> BaseException | None:
        try:
            await work
        except Exception as error:
            return error
        return None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(await outcome(accept(reader, writer, acceptor_knows)))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        called = await outcome(call(reader, writer, caller_knows))
        writer.close()
        return await accepted, called


def test_streams() -> None:
    assert asyncio.run(_over_streams("s", "s")) == (None, None)
    accepted, called = asyncio.run(_over_streams("s", "t"))
    assert isinstance(accepted, StrangerError)
    assert isinstance(called, StrangerError)


def test_a_peer_that_sends_a_message_at_once_is_a_stranger() -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with pytest.raises(StrangerError):
                await accept(reader, writer, "s")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"\xff" * 4096)
            assert len(await reader.read()) == 32
            writer.close()

    asyncio.run(run())
