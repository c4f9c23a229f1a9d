"""The directory of workers: workers enter themselves; routers and the `ling` command watch it."""

import asyncio
import secrets
import time

from cluster.entries import ENTER_EVERY_S, Entries, Failure, Listing
from cluster.figures import Figures, RouterFigures
from cluster.loopback import close_side_door
from wire.progress import Starting
from wire.protocol import WorkerInfo

_WATCH_S = 10.0
# After a restart, routers keep their listings until every worker has had the time to enter itself again.
_SETTLE_S = 4 * ENTER_EVERY_S


class Directory:
    """The one replica that holds the entries; a restarted one is filled again within ENTER_EVERY_S."""

    def __init__(self) -> None:
        """Serve calls it on the replica's event loop."""
        close_side_door()
        self._entries = Entries(secrets.token_hex(4))
        self._figures = RouterFigures()
        self._changed = asyncio.Condition()
        self._settled = asyncio.create_task(asyncio.sleep(_SETTLE_S))

    async def enter(self, info: WorkerInfo) -> None:
        """A worker serves."""
        await self._note(self._entries.enter(info, time.monotonic()))

    async def start(self, worker: Starting) -> None:
        """A worker reports the progress of its start."""
        await self._note(self._entries.start(worker, time.monotonic()))

    async def leave(self, worker_id: str) -> None:
        """A worker takes no more work."""
        await self._note(self._entries.leave(worker_id))

    async def fail(self, failure: Failure) -> None:
        """A worker ends, for this reason."""
        await self._note(self._entries.fail(failure))

    async def exchange(self, router: str, figures: Figures) -> dict[str, Figures]:
        """A router hands in its figures, and gets those of the other routers."""
        return self._figures.tell(router, figures, time.monotonic())

    async def watch(self, version: str) -> Listing:
        """Return the listing once it differs from `version`, or unchanged after _WATCH_S. `version` is "" the first
        time.
        """
        if version and not self._entries.made(version):
            # The caller has the listing of an earlier directory, from which a shorter one would take workers.
            await asyncio.shield(self._settled)
        deadline = time.monotonic() + _WATCH_S
        while (now := time.monotonic()) < deadline:
            await self._note(self._entries.expire(now))
            if self._entries.listing.version != version:
                break
            async with self._changed:
                # Wait one tick at most, so that entries expire though nobody enters.
                try:
                    await asyncio.wait_for(self._changed.wait(), min(deadline - now, ENTER_EVERY_S))
                except TimeoutError:
                    continue
        return self._entries.listing

    async def _note(self, changed: bool) -> None:
        if changed:
            async with self._changed:
                self._changed.notify_all()
