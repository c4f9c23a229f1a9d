"""Lets lines start, as many as `router.batch.policy` has room for."""

import asyncio

from router.batch.policy import room
from router.relay.gateway import Gateway

# Seconds between two readings of the workers' figures by a line that waits; the figures change with each step.
_LOOK_S = 0.02


class Permit:
    """The right of one line to run."""

    def __init__(self, gate: "Gate") -> None:
        self._gate = gate
        self.starting = True

    def sent(self) -> None:
        """The line was sent to the workers: from now on their figures include it."""
        if self.starting:
            self.starting = False
            self._gate.starting -= 1

    async def again(self) -> None:
        """Return when the line may be sent once more."""
        self.sent()
        await self._gate.wait(inside=1)
        self.starting = True
        self._gate.starting += 1

    def leave(self) -> None:
        """The line has ended."""
        self.sent()
        self._gate.running -= 1


class Gate:
    """The gate for all batches of one router, so that they take turns."""

    def __init__(self, gateway: Gateway, most: int) -> None:
        self.running = 0
        self.starting = 0
        self._gateway = gateway
        self._most = most
        self._turn = asyncio.Lock()

    async def enter(self) -> Permit:
        """Return the permit of the next line when it may start, first come first served. Its `leave` must be called."""
        await self.wait(inside=0)
        self.running += 1
        self.starting += 1
        return Permit(self)

    async def wait(self, inside: int) -> None:
        """Return once there is room for one more line. inside: whether that line already counts as running."""
        gateway = self._gateway
        async with self._turn:
            while not room(
                gateway.table.snapshot(), self.running - inside, self.starting, self._most,
                split=gateway.split, waiting=gateway.waiting,
            ):  # fmt: skip
                await asyncio.sleep(_LOOK_S)
