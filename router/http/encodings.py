"""Content encodings of request bodies. They are decoded in parts, because a few bytes can decode to gigabytes."""

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
    """Decode zlib's format, as the standard demands, or some clients' raw deflate; the header tells which it is."""
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


# Each decoder takes a body's file and yields the decoded parts, of at most 64 KiB; DecodeError if the body is damaged.
DECODERS: Mapping[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}


def decode(body: BinaryIO, encoding: str, limit: int) -> bytes:
    """Decode a body; stops with what there is as soon as it exceeds the limit."""
    parts, size = [], 0
    for part in DECODERS[encoding](body):
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    return b"".join(parts)
