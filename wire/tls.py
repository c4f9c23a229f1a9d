"""TLS on the cluster's own TCP connections, by the switch and the files that Ray reads too.

With RAY_USE_TLS each process shows its one certificate (RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY) at whichever end of
a connection it is, and takes the other end for one of the cluster if RAY_TLS_CA_CERT signed its certificate. Names in
it are not compared: processes reach each other by address. The secret (`wire.handshake`) is proved inside.
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
    """TLS is asked for, but a file it needs is not named, can't be read, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The TLS contexts: `acceptor` for the listening side, `caller` for the connecting side."""

    acceptor: ssl.SSLContext
    caller: ssl.SSLContext


@cache
def tls() -> Tls | None:
    """This process's contexts, read once from the files that its environment names; None without RAY_USE_TLS.

    TlsError.
    """
    return load(os.environ)


def load(environment: Mapping[str, str]) -> Tls | None:
    """Read the TLS settings from `environment`, as `tls` does from the process's own."""
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
    """Open a connection to another process of the cluster; OSError (also ssl.SSLError) if that fails."""
    own = tls()
    return await asyncio.open_connection(host, port, ssl=own.caller if own else None)


async def listen(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], host: str, port: int = 0
) -> asyncio.Server:
    """Listen for such connections, at any free port if none is given."""
    own = tls()
    if own is None:
        return await asyncio.start_server(serve, host, port)
    return await asyncio.start_server(serve, host, port, ssl=own.acceptor, ssl_handshake_timeout=PATIENCE_S)
