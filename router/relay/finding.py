"""Asks workers whether one of them has a request that a client sent to another router before."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from wire.protocol import Find, Found

# A worker answers between two steps. Without an answer in this time the request is computed again.
_WAIT_S = 2.0


class Asked(Protocol):
    """A worker's connection that can be asked."""

    def find(self, message: Find, answer: "Callable[[Found | None], None]") -> None:
        """Ask the worker, and call `answer` with its answer, or with None if the connection ends first."""


@dataclass(frozen=True, slots=True)
class Place:
    """The worker that has a request, and the request's id there."""

    worker_id: str
    request_id: str
    body: bytes


async def find(links: Iterable[tuple[str, Asked]], key: bytes) -> Place | None:
    """The place of the request with a key, from the first worker that has it; None if none has."""
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
