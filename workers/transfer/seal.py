"""TLS on bytes in memory, for a blocking socket that several threads use.

It touches no socket, so a thread that waits for bytes needs no lock while it waits. One lock suffices for what two
threads must not do at once: encrypt and decrypt.
"""

import ssl
from collections.abc import Callable

_READ = 65536


class Seal:
    """One end of one connection: `meet` once, then `close` and `open` in any order, one call at a time."""

    def __init__(self, context: ssl.SSLContext, calling: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=not calling)

    def meet(self, receive: Callable[[], bytes], send: Callable[[bytes], None]) -> None:
        """The TLS handshake, over what `receive` gives (some bytes, or it raises) and `send` sends.

        ssl.SSLError if the other end has no such certificate, which it is told.
        """
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                pass
            finally:
                send(self._out.read())
            self._in.write(receive())

    def close(self, plain: bytes) -> bytes:
        """Encrypt plain bytes."""
        left = memoryview(plain)
        while left:
            left = left[self._tls.write(left) :]
        return self._out.read()

    def open(self, sealed: bytes) -> bytes:
        """Decrypt received bytes; empty if more must come first. ssl.SSLError if they were changed."""
        self._in.write(sealed)
        plain = bytearray()
        try:
            while piece := self._tls.read(_READ):
                plain += piece
        except ssl.SSLWantReadError:
            pass
        return bytes(plain)
