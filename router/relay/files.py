"""Connects to a worker to save or load one snapshot as a file, apart from the connection for requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wire.codec import CLUSTER
from wire.handshake import call
from wire.protocol import FileKept, FilePart, FileRefused, Hello, LoadFile, Message, PeerRef, SaveFile
from wire.tls import connect

_CONNECT_S = 5.0
# The worker waits for its ranks at most so long, and for this router.
_PATIENCE_S = 150.0


class FileLost(Exception):
    """The worker can't give or take the file; the message says why."""


class LinkLost(FileLost):
    """The connection to the worker broke."""


class FileLink:
    """A connection that moves one file in one direction."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def save(self, asked: SaveFile) -> AsyncIterator[bytes]:
        """Yield the bytes of a saved snapshot piece by piece; FileLost."""
        self._writer.write(CLUSTER.encode(asked))
        while piece := await self._part():
            yield piece

    async def begin(self, scope: str) -> None:
        """Announce a file to load, for requests of this scope."""
        self._writer.write(CLUSTER.encode(LoadFile(scope)))

    async def send(self, piece: bytes) -> None:
        """Send bytes of the file; b"" ends it."""
        self._writer.write(CLUSTER.encode(FilePart(piece)))
        async with asyncio.timeout(_PATIENCE_S):
            await self._writer.drain()

    async def kept(self) -> None:
        """Wait until the worker keeps the snapshot that was sent; FileLost."""
        answer = await self._read()
        if not isinstance(answer, FileKept):
            raise FileLost(f"it answered with {type(answer).__name__}")

    async def _part(self) -> bytes:
        answer = await self._read()
        if not isinstance(answer, FilePart):
            raise FileLost(f"it answered with {type(answer).__name__}")
        return answer.data

    async def _read(self) -> Message:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await CLUSTER.read(self._reader)
        if isinstance(answer, FileRefused):
            raise FileLost(answer.reason)
        return answer


@asynccontextmanager
async def file_link(ref: PeerRef, router_name: str, secret: str) -> AsyncIterator[FileLink]:
    """Connect to a worker; every error of the connection becomes a LinkLost."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await connect(ref.host, ref.port)
            await call(reader, writer, secret)
        writer.write(CLUSTER.encode(Hello(router_name, "file")))
        yield FileLink(reader, writer)
    except (OSError, EOFError, TimeoutError) as error:
        raise LinkLost(f"the connection to it broke: {error or type(error).__name__}") from error
    finally:
        if writer is not None:
            writer.close()
