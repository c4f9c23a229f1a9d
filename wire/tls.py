"""TLS on the cluster's own TCP connections, set up by the same environment variables as Ray's TLS.

With RAY_USE_TLS each process shows its certificate (RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY) at both ends of a
connection, and accepts the other end if RAY_TLS_CA_CERT signed its certificate. Names in certificates are not compared,
because processes reach each other by address. Inside the encrypted connection both ends prove that they know the secret
(`wire.handshake`).
"""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wire.handshake import PATIENCE_S

_SWITCH = "RAY_USE_TLS"
_CERTIFICATE, _KEY, _AUTHORITY = "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"


class TlsError(RuntimeError):
    """TLS is switched on, but a file it needs is not named, can't be read, or has the wrong content."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The TLS contexts: `acceptor` for the listening side, `caller` for the connecting side."""

    acceptor: ssl.SSLContext
    caller: ssl.SSLContext


@cache
def tls() -> Tls | None:
    """This process's TLS contexts, read once from the files that its environment names; None without RAY_USE_TLS.

    TlsError if a file is missing or wrong.
    """
    return load(os.environ)


def load(environment: Mapping[str, str]) -> Tls | None:
    """As `tls`, for any environment variables; reads the files at each call."""
    if environment.get(_SWITCH, "").lower() not in ("1", "true"):
        return None
    files = {name: _file(environment, name) for name in (_CERTIFICATE, _KEY, _AUTHORITY)}
    both = Tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in (both.acceptor, both.caller):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            # Pass some password, even a wrong one: otherwise OpenSSL would ask for it at the terminal.
            context.load_cert_chain(files[_CERTIFICATE], files[_KEY], password="")
        except ssl.SSLError as error:
            raise TlsError(
                f"{_CERTIFICATE}, {_KEY}: {files[_CERTIFICATE]} and {files[_KEY]} are not a certificate and its key, "
                f"in PEM and without a password: {error}"
            ) from error
        try:
            context.load_verify_locations(files[_AUTHORITY])
        except ssl.SSLError as error:
            raise TlsError(f"{_AUTHORITY}: {files[_AUTHORITY]} holds no certificate in PEM: {error}") from error
    # Connections live long and are not resumed.
    both.acceptor.num_tickets = 0
    return both


def _file(environment: Mapping[str, str], name: str) -> str:
    path = environment.get(name, "")
    if not path:
        raise TlsError(f"{name}: {_SWITCH} is set, so it must name a file")
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"{name}: can't read {path}: {error.strerror}") from error
    return path


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to another process of the cluster, with TLS if it is on; OSError (also ssl.SSLError)."""
    own = tls()
    return await asyncio.open_connection(host, port, ssl=own.caller if own else None)


async def listen(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], host: str, port: int = 0
) -> asyncio.Server:
    """Listen for connections as `connect` opens them. port: 0 for any free one."""
    own = tls()
    if own is None:
        return await asyncio.start_server(serve, host, port)
    return await asyncio.start_server(serve, host, port, ssl=own.acceptor, ssl_handshake_timeout=PATIENCE_S)
