"""A router as a Serve replica: the ingress of the application, and an HTTP server of its own."""

import asyncio
import logging
from typing import Any

from fastapi import FastAPI
from ray import serve

from cluster.entries import Listing
from cluster.front import Front
from cluster.loopback import close_side_door
from cluster.resolve import Resolved, pools, router_config
from router.app import Gateway, create_app
from router.workers import ListedWorker
from workers.protocol import PeerRef

_RETRY_S = 0.5
# What in-stream errors need to reach the clients, once draining is over.
_FLUSH_S = 2.0
_LOG = logging.getLogger("ray.serve")


class Router:
    """Serve calls `__init__`, then `__serve_build_asgi_app__`, on the event loop that serves the application."""

    def __init__(self, resolved: Resolved, directory: Any, _pools: Any) -> None:
        close_side_door()
        self._config = resolved.config
        self._directory = directory
        name = f"router-{serve.get_replica_context().replica_id.unique_id}"
        self._gateway = Gateway(router_config(resolved, name), pools(resolved))
        self._front: Front | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        config = self._config
        await self._gateway.start()
        self._watching = asyncio.create_task(self._watch())
        app = create_app(self._gateway)
        if config.port is not None:
            self._front = Front(app, config.host, config.port, config.drain_s + _FLUSH_S)
            self._front.start()
        return app

    async def _watch(self) -> None:
        """Keep the gateway's table as the directory lists it; without a directory the last listing stands."""
        version = ""
        while True:
            try:
                listing: Listing = await self._directory.watch.remote(version)
            except Exception as error:
                _LOG.warning("no listing from the directory: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            if listing.version != version:
                version = listing.version
                await self._gateway.update_workers(
                    [ListedWorker(PeerRef(w.worker_id, w.host, w.port), w.role) for w in listing.workers]
                )

    async def __del__(self) -> None:
        """Accept nothing more, let streams end, then end them with an error their readers see."""
        if self._front is not None:
            self._front.stop_accepting()
            try:
                await asyncio.wait_for(self._front.drained(), self._config.drain_s)
            except TimeoutError:
                _LOG.warning("streams still run after %s s of draining: they end with an error", self._config.drain_s)
        self._watching.cancel()
        await self._gateway.close()
        if self._front is not None:
            await self._front.close()
