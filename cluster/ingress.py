"""A router as a Serve replica: the ingress of the application, and an HTTP server of its own."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from ray import serve

from cluster.entries import Listing
from cluster.figures import Figures
from cluster.front import Front
from cluster.loopback import close_side_door
from cluster.metrics import Bridge
from cluster.resolve import Resolved, log_settings, pools, router_config
from cluster.secret import cluster_secret
from router.app import Gateway, create_app
from router.memory import keep_for_good
from router.relay.link import ListedWorker
from wire.logs import describe, set_up
from wire.protocol import PeerRef

_RETRY_S = 0.5
# At its start a router waits so long for the directory, then for its workers, before it listens.
_LISTING_S, _LINKS_S = 5.0, 1.0
_EXCHANGE_S = 2.0
_POLL_S = 0.02
# Time for in-stream errors to reach the clients, after draining.
_FLUSH_S = 2.0
_LOG = logging.getLogger(__name__)


class Router:
    """A router's replica. Serve calls `__init__`, then `__serve_build_asgi_app__`, on the event loop that serves."""

    def __init__(self, resolved: Resolved, directory: Any, _pools: Any) -> None:
        close_side_door()
        self._config = resolved.config
        self._directory = directory
        name = f"router-{serve.get_replica_context().replica_id.unique_id}"
        set_up(log_settings(self._config), router=name)
        if resolved.origin is not None:
            resolved = resolved.moved(resolved.origin.description().folder)
        self._gateway = Gateway(router_config(resolved, name, cluster_secret()), pools(resolved))
        self._front: Front | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        config = self._config
        await self._gateway.start()
        self._informed = asyncio.Event()
        self._watching = asyncio.create_task(self._watch())
        # Workers report their own details.
        metrics, tags = self._gateway.metrics, {"router": self._gateway.config.name}
        own = Bridge(lambda: (r for r in metrics.read() if r.metric.source == "router"), tags)
        self._telling = asyncio.create_task(own.run())
        app = create_app(self._gateway, self._exchange if config.router.replicas != 1 else None)
        keep_for_good()
        if config.port is not None:
            self._front = Front(app, config.host, config.port, config.drain_s + _FLUSH_S)
            await self._learn()
            self._front.start()
        return app

    async def _learn(self) -> None:
        """Wait until it can serve as the other routers of its port do, who answer meanwhile."""
        links = self._gateway.table.links
        with suppress(TimeoutError):
            await asyncio.wait_for(self._informed.wait(), _LISTING_S)
            async with asyncio.timeout(_LINKS_S):
                while any(not link.connected for link in links()):
                    await asyncio.sleep(_POLL_S)

    async def _exchange(self, own: dict[str, float]) -> dict[str, Figures]:
        name = self._gateway.config.name
        return await asyncio.wait_for(self._directory.exchange.remote(name, own), _EXCHANGE_S)

    async def _watch(self) -> None:
        """Keep the gateway's table equal to the directory's listing; without a directory, keep the last listing."""
        version = ""
        while True:
            try:
                listing: Listing = await self._directory.watch.remote(version)
            except Exception as error:
                _LOG.warning("no listing from the directory: %s", describe(error))
                await asyncio.sleep(_RETRY_S)
                continue
            if listing.version != version:
                version = listing.version
                self._gateway.starting = listing.starting
                self._gateway.pools_have_served(listing.served)
                await self._gateway.update_workers(
                    [ListedWorker(PeerRef(w.worker_id, w.host, w.port), w.role) for w in listing.workers]
                )
            self._informed.set()

    async def __del__(self) -> None:
        """Stop accepting, give streams `drain_s` seconds to end, then end the rest with an error event."""
        if self._front is not None:
            self._front.stop_accepting()
            try:
                await asyncio.wait_for(self._front.drained(), self._config.drain_s)
            except TimeoutError:
                _LOG.warning("streams still run after %s s of draining: they end with an error", self._config.drain_s)
        self._watching.cancel()
        self._telling.cancel()
        await self._gateway.close()
        if self._front is not None:
            await self._front.close()
