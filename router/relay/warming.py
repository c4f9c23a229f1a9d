"""Brings the state of known tokens to a worker's device without generating an answer."""

import asyncio

from router.relay.leg import Leg, Link
from wire.protocol import SamplingParams, SeqOutput, Submit


class Warming:
    """The work of one worker. done: the reason of a failure, or None once the state is there.

    work: tokens that it computes.
    """

    def __init__(self, link: Link, message: Submit, work: int) -> None:
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._leg = Leg(self, link, message, work)

    def cancel(self) -> None:
        """Give it up; harmless when it is done."""
        self._leg.cancel()

    def receive(self, leg: Leg, output: SeqOutput, now: float) -> None:
        """Take the worker's only output."""
        if output.finish is not None:
            leg.close()
            self._end(output.error or "its worker gave no reason" if output.finish == "error" else None)

    def lost(self, leg: Leg, now: float, *, alone: bool = False, silent: bool = False) -> None:
        """The worker ended, or is silent."""
        self._end(f"{leg.name} ended")

    def broke(self, error: Exception) -> None:
        """The router failed while it handled an output."""
        self._end(f"internal error: {type(error).__name__}")

    def _end(self, reason: str | None) -> None:
        if not self.done.done():
            self.done.set_result(reason)


# A sequence has to sample one token to end.
ONE_TOKEN = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
