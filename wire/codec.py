"""Messages on a byte stream: a 4-byte length, a 1-byte type, then the dataclass in MessagePack.

A stream, not a broker: when a process dies its peers read the end of the stream at once.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_args

import msgspec

from wire import protocol

M = TypeVar("M")
_HEAD = struct.Struct("<IB")
# A prompt of 256k tokens takes 1.3 MB; a far larger frame is not from this cluster.
MAX_FRAME = 256 * 1024 * 1024


class WireError(RuntimeError):
    """The peer sent something that is not one of the codec's messages."""


class Codec(Generic[M]):
    """Frames a closed set of dataclasses; the type byte is the index in `types`."""

    def __init__(self, types: tuple[type[Any], ...]) -> None:
        self._index = {t: i for i, t in enumerate(types)}
        self._decoders: list[Callable[[bytes], Any]] = [msgspec.msgpack.Decoder(t).decode for t in types]
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: M) -> bytes:
        """Encode a message as one frame."""
        body = self._encoder.encode(message)
        return _HEAD.pack(len(body), self._index[type(message)]) + body

    def decode(self, kind: int, body: bytes) -> M:
        """Decode a type byte and a body; WireError if they are no message."""
        try:
            message: M = self._decoders[kind](body)
        except (IndexError, msgspec.MsgspecError) as error:
            raise WireError(f"unreadable message of type {kind}, {len(body)} bytes: {error}") from error
        return message

    async def read(self, reader: asyncio.StreamReader) -> M:
        """Read the next message; `asyncio.IncompleteReadError` at the stream's end."""
        size, kind = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if size > MAX_FRAME:
            raise WireError(f"a frame of {size} bytes exceeds {MAX_FRAME}")
        return self.decode(kind, await reader.readexactly(size))

    def read_blocking(self, recv_exactly: Callable[[int], bytes]) -> M:
        """Read the next message through a blocking `recv_exactly(n)`."""
        size, kind = _HEAD.unpack(recv_exactly(_HEAD.size))
        if size > MAX_FRAME:
            raise WireError(f"a frame of {size} bytes exceeds {MAX_FRAME}")
        return self.decode(kind, recv_exactly(size))


CLUSTER: Codec[protocol.Message] = Codec(get_args(protocol.Message))
