"""Asks workers whether they have a request that another router was given."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from wire.protocol import Find, Found

# A worker answers between two steps. Without its answer the request is computed anew.
_WAIT_S = 2.0


class Asked(Protocol):
    """A worker's connection."""

    def find(self, message: Find, answer: "Callable[[Found | None], None]") -> None:
        """Ask, and call with the answer; with None if the connection ends before."""


@dataclass(frozen=True, slots=True)
class Place:
    """A worker that has a request, and under which id."""

    worker_id: str
    request_id: str
    body: bytes


async def find(links: Iterable[tuple[str, Asked]], key: bytes) -> Place | None:
    """Who has what was asked under a key; the first that says so."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Place | None] = loop.create_future()
    asked = list(links)
    left = len(asked)

    def answered(worker_id: str, answer: Found | None) -> None:
        nonlocal left
        left -= 1
        if done.done():
            return
        if answer is not None and answer.request_id:
            done.set_result(Place(worker_id, answer.request_id, answer.body))
        elif not left:
            done.set_result(None)

    for worker_id, link in asked:
        link.find(Find(key), partial(answered, worker_id))
    if not asked:
        return None
    try:
        return await asyncio.wait_for(done, _WAIT_S)
    except TimeoutError:
        return None
