"""Tracks a router's open questions to a worker: whether it has a request, and whether a snapshot is parked."""

import asyncio
import itertools
from collections.abc import Callable

from wire.protocol import Found


class Inquiries:
    """The open questions of one connection; the link sends them and reports the answers."""

    def __init__(self) -> None:
        self._finding: dict[bytes, list[Callable[[Found | None], None]]] = {}  # by idempotency key
        self._calls = itertools.count()
        self._parking: dict[int, asyncio.Future[str | None]] = {}  # by call number

    def find(self, key: bytes, answer: Callable[[Found | None], None]) -> None:
        """Call `answer` with the worker's answer about a key; with None if the connection ends before."""
        self._finding.setdefault(key, []).append(answer)

    def found(self, message: Found) -> None:
        """Pass the worker's answer on to all who asked about its key."""
        for answer in self._finding.pop(message.key, []):
            answer(message)

    def park(self) -> tuple[int, asyncio.Future[str | None]]:
        """Number a call to park a snapshot; its future gets the reason if the snapshot stays on the device."""
        call = next(self._calls)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._parking[call] = answer
        answer.add_done_callback(lambda _: self._parking.pop(call))
        return call, answer

    def parked(self, call: int, reason: str | None) -> None:
        """Pass on the worker's answer to a call to park."""
        answer = self._parking.get(call)
        if answer is not None and not answer.done():
            answer.set_result(reason)

    def lose(self) -> None:
        """Answer all open questions after the connection has ended: nothing is found, and nothing is on the device."""
        finding, self._finding = self._finding, {}
        for answers in finding.values():
            for answer in answers:
                answer(None)
        for call in self._parking:
            self.parked(call, None)
