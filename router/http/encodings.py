"""Content encodings of request bodies. What is decoded comes in parts: a few bytes can stand for gigabytes."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import zstandard

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits
_PART = 64 * 1024


class DecodeError(Exception):
    """The body is not in its encoding, or is cut off."""


def _inflated(file: BinaryIO, wbits: int) -> Iterator[bytes]:
    decoder, rest, begun = zlib.decompressobj(wbits), b"", False
    while rest or (rest := file.read(_PART)):
        begun = True
        if decoder.eof:
            if wbits != _GZIP:
                return
            decoder = zlib.decompressobj(wbits)  # gzip may hold several members
        part = b"full"
        while part and not decoder.eof:
            try:
                part = decoder.decompress(rest, _PART)
            except zlib.error as error:
                raise DecodeError(str(error)) from None
            rest = decoder.unconsumed_tail
            if part:
                yield part
        rest = decoder.unused_data
    if begun and not decoder.eof:
        raise DecodeError("it is cut off")


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    return _inflated(file, _GZIP)


def _deflate(file: BinaryIO) -> Iterator[bytes]:
    """zlib's format, as the standard says, or the bare deflate that some clients send: the header tells."""
    header = file.read(2)
    file.seek(0)
    is_zlib = len(header) == 2 and header[0] & 0xF == 8 and int.from_bytes(header) % 31 == 0
    return _inflated(file, _ZLIB if is_zlib else _RAW)


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    try:
        with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(
            file, read_across_frames=True, closefd=False
        ) as reader:
            while part := reader.read(_PART):
                yield part
    except zstandard.ZstdError as error:
        raise DecodeError(str(error)) from None


# Each takes a body's file and gives what it stands for in parts of at most 64 KiB; DecodeError where it can't.
DECODERS: Mapping[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}


def decode(body: BinaryIO, encoding: str, limit: int) -> bytes:
    """The decoded body; as soon as it exceeds the limit, what there is by then."""
    parts, size = [], 0
    for part in DECODERS[encoding](body):
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    return b"".join(parts)
