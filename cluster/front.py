"""A router replica's own HTTP server."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from cluster.http_limits import LimitedHttp

# For a client that has just connected to send its request.
_LATE_S = 0.5


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone, because the process in which this server runs handles them."""
        yield

    def protocol(self) -> asyncio.Protocol:
        """Serve one new connection."""
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made


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
        self._stopped = False
        self._pending: list[asyncio.Task[Any]] = []

    def start(self) -> None:
        """Serve on the running event loop."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    def stop_accepting(self) -> None:
        """Refuse new connections; running requests go on, and who has just connected may still send a request."""
        if self._serving is None or not self._server.servers:
            self._server.should_exit = True
        if self._stopped or self._server.should_exit:
            return
        self._stopped = True
        self._take_pending()
        for server in self._server.servers:
            server.close()
        # It closes all connections without a request then.
        asyncio.get_running_loop().call_later(_LATE_S, self._exit)

    def _take_pending(self) -> None:
        """Accept the connections that wait for it: the kernel would reset them, though another router could answer."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                self._pending.append(loop.create_task(loop.connect_accepted_socket(self._server.protocol, connection)))

    def _exit(self) -> None:
        self._server.should_exit = True

    async def close(self) -> None:
        """Return once all requests have ended, or the grace is over."""
        self.stop_accepting()
        self._exit()
        if self._serving is not None:
            await self._serving
        self._socket.close()

    async def drained(self) -> None:
        """Return once all requests have ended, without any deadline."""
        if self._serving is not None:
            await asyncio.shield(self._serving)
