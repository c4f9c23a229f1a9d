"""Content encodings of request bodies. What is decoded stays bounded: a few bytes can stand for gigabytes."""

import io
import zlib
from collections.abc import Callable, Mapping

import zstandard

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits


class DecodeError(Exception):
    """The body is not in its encoding, or is cut off."""


def _inflate(body: bytes, limit: int, wbits: int) -> bytes:
    out, rest = b"", body
    while rest:  # gzip may hold several members
        decoder = zlib.decompressobj(wbits)
        try:
            out += decoder.decompress(rest, limit + 1 - len(out))
        except zlib.error as error:
            raise DecodeError(str(error)) from None
        if len(out) > limit:
            return out
        if not decoder.eof:
            raise DecodeError("it is cut off")
        rest = decoder.unused_data if wbits == _GZIP else b""
    return out


def _gzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, limit, _GZIP)


def _deflate(body: bytes, limit: int) -> bytes:
    """zlib's format, as the standard says, or the bare deflate that some clients send."""
    try:
        return _inflate(body, limit, _ZLIB)
    except DecodeError:
        return _inflate(body, limit, _RAW)


def _zstd(body: bytes, limit: int) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(
            io.BytesIO(body), read_across_frames=True
        ) as reader:
            return reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise DecodeError(str(error)) from None


# Each takes a body and a limit, and gives at most one byte more than the limit.
DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
