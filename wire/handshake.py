"""Both ends of a new connection prove that they know the cluster's secret before either reads a message.

The acceptor sends a nonce A. The caller answers with a nonce C and HMAC(secret, "caller" A C); the acceptor with
HMAC(secret, "acceptor" A C). All pieces have a fixed size, so a stranger can't make anyone read more than 64 bytes.

The handshake keeps strangers out. It does not encrypt, and does not protect an open connection against changes. With
the secret "" the same proofs are exchanged, but everyone can make them.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable

_NONCE = 32
_PROOF = 32
PATIENCE_S = 5.0


class StrangerError(ConnectionError):
    """The other end does not know the secret."""

    def __init__(self) -> None:
        super().__init__("the other end does not know this cluster's secret: give every node the same Ray auth token")


def _proof(secret: str, side: bytes, acceptor: bytes, caller: bytes) -> bytes:
    return hmac.digest(secret.encode(), side + acceptor + caller, "sha256")


class Caller:
    """The side that connected: `answer` the acceptor's nonce, then `check` its proof."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def answer(self, nonce: bytes) -> bytes:
        """The reply to the acceptor's nonce: this side's nonce and proof."""
        self._nonces = nonce, secrets.token_bytes(_NONCE)
        return self._nonces[1] + _proof(self._secret, b"caller", *self._nonces)

    def check(self, proof: bytes) -> None:
        """StrangerError if the acceptor's proof is wrong."""
        if not hmac.compare_digest(proof, _proof(self._secret, b"acceptor", *self._nonces)):
            raise StrangerError


class Acceptor:
    """The side that listens: send `nonce`, then send what `answer` returns for the caller's reply."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self.nonce = secrets.token_bytes(_NONCE)

    def answer(self, said: bytes) -> bytes:
        """This side's proof, for the caller's nonce and proof; StrangerError if that proof is wrong."""
        nonces = self.nonce, said[:_NONCE]
        if not hmac.compare_digest(said[_NONCE:], _proof(self._secret, b"caller", *nonces)):
            raise StrangerError
        return _proof(self._secret, b"acceptor", *nonces)


async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str) -> None:
    """Do the caller's side on asyncio streams.

    StrangerError if the other end does not know the secret, TimeoutError after PATIENCE_S, or a broken stream's error.
    """
    caller = Caller(secret)
    async with asyncio.timeout(PATIENCE_S):
        writer.write(caller.answer(await reader.readexactly(_NONCE)))
        caller.check(await _proof_or_end(reader))


async def _proof_or_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readexactly(_PROOF)
    except asyncio.IncompleteReadError as error:
        raise StrangerError from error  # an acceptor closes the connection of a stranger without an answer


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str) -> None:
    """Do the acceptor's side on asyncio streams; it raises as `call` does."""
    acceptor = Acceptor(secret)
    writer.write(acceptor.nonce)
    async with asyncio.timeout(PATIENCE_S):
        writer.write(acceptor.answer(await reader.readexactly(_NONCE + _PROOF)))


def call_blocking(read: Callable[[int], bytes], write: Callable[[bytes], None], secret: str) -> None:
    """Do the caller's side by blocking functions; StrangerError if the other end does not know the secret.

    read: returns exactly n bytes, and raises EOFError if the stream ends. write: sends all bytes.
    """
    caller = Caller(secret)
    write(caller.answer(read(_NONCE)))
    try:
        caller.check(read(_PROOF))
    except EOFError as error:
        raise StrangerError from error


def accept_blocking(read: Callable[[int], bytes], write: Callable[[bytes], None], secret: str) -> None:
    """Do the acceptor's side by blocking functions, as `call_blocking` does the caller's."""
    acceptor = Acceptor(secret)
    write(acceptor.nonce)
    write(acceptor.answer(read(_NONCE + _PROOF)))
