"""The messages about kept snapshots, and about the sessions that end at them."""

from wire.protocol.data import Data
from wire.protocol.worker import Tier


class KeptEvent(Data, frozen=True):
    """A change of the snapshots that a worker keeps.

    position: the snapshot's number of tokens. digest: their `wire.digest`. tier: the fastest tier that has it now; None
    if none has it any more.
    """

    position: int
    digest: bytes
    tier: Tier | None


class Mark(Data, frozen=True):
    """The name of a kept snapshot: its number of tokens and their `wire.digest`."""

    position: int
    digest: bytes


class Pin(Data, frozen=True):
    """Pin a session's snapshot: the first of `marks` that the worker keeps. For `ttl_s` seconds it does not age.

    again: the router repeats the pin, because the worker may have started anew; a worker that knows the session ignores
    it.
    """

    session: str
    marks: tuple[Mark, ...]
    ttl_s: float
    again: bool = False


class Unpin(Data, frozen=True):
    """Unpin a session's snapshot: the session is over, so from now on the snapshot ages."""

    session: str


class Park(Data, frozen=True):
    """Move a kept snapshot from the device to a slower tier; `Parked` with the same `call` answers."""

    call: int
    mark: Mark


class Parked(Data, frozen=True):
    """The answer to `Park`. reason: why the snapshot stays on the device; None if it does not."""

    call: int
    reason: str | None
