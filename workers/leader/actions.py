"""Defines the actions that follow from a hand-off's event. `HandOffs` decides them, `Leader._perform` does them."""

from dataclasses import dataclass

from wire.protocol import CancelPull, Header, Pull, PullRefused, SeqOutput
from workers.leader.figures import TransferFailure
from workers.leader.pulls import Puller
from workers.schedule.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ToPuller:
    """Send a message to a decode worker that pulls from here."""

    puller: Puller
    message: Header | PullRefused


@dataclass(frozen=True, slots=True)
class ToPeer:
    """Send a message to a peer that this worker pulls from."""

    worker_id: str
    message: Pull | CancelPull


@dataclass(frozen=True, slots=True)
class Add:
    """Schedule a request: its peer is connected, or is no longer needed."""

    seq: Sequence


@dataclass(frozen=True, slots=True)
class Failed:
    """Count a snapshot that did not come."""

    why: TransferFailure


@dataclass(frozen=True, slots=True)
class Arrived:
    """Count a snapshot that has come, and the seconds since its header came."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Publish the last output of a request."""

    output: SeqOutput


@dataclass(frozen=True, slots=True)
class Told:
    """Publish an output of a request that goes on."""

    output: SeqOutput


Action = ToPuller | ToPeer | Add | Failed | Arrived | Ended | Told
