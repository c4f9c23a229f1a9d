"""Brings the state of known tokens to a worker's device without generating an answer."""

import asyncio

from router.relay.leg import Leg, Link
from router.relay.recovery import Loss
from wire.protocol import PeerRef, Prefix, SamplingParams, SeqOutput, Submit, WorkerInfo
from wire.tokens import TokenIds


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

    def lost(self, leg: Leg, now: float, how: Loss, *, alone: bool) -> None:
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


def pulling(
    request_id: str, token_ids: TokenIds, scope: str, owner: WorkerInfo, kept_tokens: int, priority: int
) -> Submit:
    """The request that has a worker pull what `owner` keeps of a sequence, the state after `kept_tokens` of its tokens.

    It computes one token more, so there must be one.
    """
    source = PeerRef(owner.worker_id, owner.host, owner.port)
    prefix = Prefix(scope=scope, kept_tokens=kept_tokens, source=source)
    return Submit(request_id, token_ids.first(kept_tokens + 1), ONE_TOKEN, priority, prefix=prefix, warm=True)
