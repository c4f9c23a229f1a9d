"""Frames messages on a byte stream: a 4-byte length, a 1-byte type, then the message in MessagePack.

Processes connect to each other directly and use no broker, so the peers of a process that dies see it at once, as the
end of the stream.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_args

import msgspec

from wire import protocol

M = TypeVar("M")
_HEAD = struct.Struct("<IB")
# Bytes. The packed ids of a prompt of 256k tokens take 1 MB, so a far larger frame does not come from this cluster.
MAX_FRAME = 256 * 1024 * 1024


class WireError(RuntimeError):
    """The peer sent something that is not one of the codec's messages."""


class Codec(Generic[M]):
    """Encodes and decodes a fixed set of message classes; a frame's type byte is the class's index in `types`."""

    def __init__(self, types: tuple[type[Any], ...]) -> None:
        self._index = {t: i for i, t in enumerate(types)}
        self._decoders: list[Callable[[bytes], Any]] = [msgspec.msgpack.Decoder(t).decode for t in types]
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: M) -> bytes:
        """Encode a message as one frame."""
        body = self._encoder.encode(message)
        return _HEAD.pack(len(body), self._index[type(message)]) + body

    def decode(self, kind: int, body: bytes) -> M:
        """Decode a frame's body by its type byte; WireError if they are not one of the codec's messages."""
        try:
            message: M = self._decoders[kind](body)
        except (IndexError, msgspec.MsgspecError) as error:
            raise WireError(f"unreadable message of type {kind}, {len(body)} bytes: {error}") from error
        return message

    async def read(self, reader: asyncio.StreamReader) -> M:
        """Read the next message; `asyncio.IncompleteReadError` at the stream's end, WireError if it is unreadable."""
        size, kind = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if size > MAX_FRAME:
            raise WireError(f"a frame of {size} bytes exceeds {MAX_FRAME}")
        return self.decode(kind, await reader.readexactly(size))

    def read_blocking(self, recv_exactly: Callable[[int], bytes]) -> M:
        """Read the next message by `recv_exactly(n)`, which blocks until it has n bytes; WireError as `read`."""
        size, kind = _HEAD.unpack(recv_exactly(_HEAD.size))
        if size > MAX_FRAME:
            raise WireError(f"a frame of {size} bytes exceeds {MAX_FRAME}")
        return self.decode(kind, recv_exactly(size))


CLUSTER: Codec[protocol.Message] = Codec(get_args(protocol.Message))
