"""Runs a store's batches beside the requests of clients, as a service of the gateway."""

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from router.api.generate import Api
from router.batch.gate import Gate
from router.batch.run import Run
from router.relay.gateway import Gateway
from router.store import batches, files
from router.store.batches import Lease, LeaseLost
from router.store.store import Store, now

_log = logging.getLogger(__name__)
# Poll interval of the records; lease of a batch without renewal (seconds).
_LOOK_S = 1.0
_LEASE_S = 15.0
# Batches that run at once. They share one gate, so that more batches would only make each slower.
_MOST = 8
_SWEEP_S = 3600.0
# How long an ended batch is remembered, and how long a content without a record (left by a crash) is kept.
_REMEMBER_S = 90 * 24 * 3600
_STRAY_S = 3600.0


class BatchRunner:
    """Runs batches for one router. Several routers over one store divide the batches by leases."""

    def __init__(self, gateway: Gateway, store: Store, apis: Mapping[str, Api[Any]]) -> None:
        """apis: the API that answers a line, by endpoint."""
        self._gateway = gateway
        self._store = store
        self._apis = apis
        self._owner = uuid.uuid4().hex
        self._gate = Gate(gateway, gateway.config.batch_concurrency)
        self._runs: set[Run] = set()
        self._woken = asyncio.Event()
        self._swept = float("-inf")
        self._task: asyncio.Task[None] | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints that a batch may name."""
        return tuple(self._apis)

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="batches")

    def wake(self) -> None:
        """Read the records now instead of at the next poll, because one has changed."""
        self._woken.set()

    async def close(self) -> None:
        """Stop at once; other runners take the batches over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        runs = list(self._runs)
        for run in runs:
            run.task.cancel()
        await asyncio.gather(*(run.task for run in runs), return_exceptions=True)
        for run in runs:
            await self._store.run(partial(batches.release, lease=run.lease))
        await asyncio.to_thread(self._store.close)

    async def _watch(self) -> None:
        while True:
            self._woken.clear()
            try:
                if self._store.begun:
                    await self._look()
            except (OSError, sqlite3.Error) as error:
                _log.error("batches wait: %s", error)
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        for run in list(self._runs):
            try:
                run.heed(
                    await self._store.run(partial(batches.renew, lease=run.lease, now=time.time(), lease_s=_LEASE_S))
                )
            except LeaseLost:
                run.task.cancel()
        while len(self._runs) < _MOST:
            claim = partial(
                batches.claim,
                owner=self._owner,
                model=self._gateway.config.served_model_name,
                endpoints=self.endpoints,
                now=time.time(),
                lease_s=_LEASE_S,
            )
            batch = await self._store.run(claim)
            if batch is None:
                break
            lease = Lease(batch.id, self._owner)
            run = Run(self._gateway, self._store, self._apis, self._gate, lease, batch)
            self._runs.add(run)
            run.task.add_done_callback(partial(self._ended, run))
        if time.monotonic() - self._swept > _SWEEP_S:
            self._swept = time.monotonic()
            await self._sweep()

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        if not task.cancelled() and (error := task.exception()) is not None:
            # No runner retries the batch before its lease expires, so that the fault has this time to pass.
            _log.error(
                "batch %s stopped; a runner tries it again when its lease expires", run.lease.batch_id, exc_info=error
            )
        self.wake()

    async def _sweep(self) -> None:
        expired = await self._store.run(partial(files.expire, now=now()))
        await self._store.run(partial(batches.forget, before=int(now() - _REMEMBER_S)))
        known = await self._store.run(files.known)
        await asyncio.to_thread(self._clear, expired, known)

    def _clear(self, expired: list[str], known: set[str]) -> None:
        for file_id in expired:
            self._store.contents.delete(file_id)
        self._store.contents.sweep(known, _STRAY_S)
