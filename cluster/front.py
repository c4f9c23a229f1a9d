"""A router replica's own HTTP server."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cluster.http_limits import LimitedHttp


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone, because the process in which this server runs handles them."""
        yield


class Front:
    """Serves an application on an address that several replicas of one host share (SO_REUSEPORT)."""

    def __init__(self, app: ASGIApp, host: str, port: int, grace_s: float) -> None:
        """Bind the address; OSError if that fails. grace_s: how long `close` may take before connections are cut."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self._server = _Server(
            uvicorn.Config(
                app,
                http=LimitedHttp,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(grace_s)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Serve on the running event loop."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    def stop_accepting(self) -> None:
        """Refuse new connections; running requests go on."""
        self._server.should_exit = True

    async def close(self) -> None:
        """Return once all requests have ended, or the grace is over."""
        self.stop_accepting()
        if self._serving is not None:
            await self._serving
        self._socket.close()

    async def drained(self) -> None:
        """Return once all requests have ended, without any deadline."""
        if self._serving is not None:
            await asyncio.shield(self._serving)
