"""Defines the messages between the two ends of a link, besides the payload."""

from dataclasses import dataclass
from typing import Literal, get_args

from wire.codec import Codec

GroupKind = Literal["gloo", "nccl"]
Kind = Literal["shm", "gloo", "nccl", "nixl", "tls"]
Choice = Literal["auto", "shm", "gloo", "nccl", "nixl"]
# What a rank's NIXL can use: nothing, as it is not installed, TCP, or RDMA.
Nixl = Literal["none", "tcp", "rdma"]


@dataclass(frozen=True, slots=True)
class Hail:
    """Receiver, first: who it is and what it can do. ranks: of its worker. `machine`: see `negotiation.machine`."""

    worker_id: str
    rank: int
    ranks: int
    machine: str
    device: str
    channel: Choice
    nixl: Nixl = "none"


@dataclass(frozen=True, slots=True)
class ArenaOffer:
    """Sender: its shared memory is descriptor `fd` of process `pid`, and begins with `nonce`."""

    pid: int
    fd: int
    slots: int
    slot_bytes: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class NixlOffer:
    """Sender: NIXL's agent of this metadata has registered memory that begins, with `nonce`, at `address`.

    gpu: whose memory it is; None for the host's.
    """

    agent: bytes
    address: int
    gpu: int | None
    slots: int
    slot_bytes: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class GroupOffer:
    """Sender: join a process group of two by the store at host:port."""

    kind: GroupKind
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class StreamOffer:
    """Sender: connect to host:port in TLS, and prove there to know `key`."""

    host: str
    port: int
    key: str


@dataclass(frozen=True, slots=True)
class OfferAnswer:
    """Receiver: the offered channel works, or the reason why it does not."""

    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class LinkFault:
    """Either end: why it closes the link now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Want:
    """Receiver: send this snapshot and mark its parts with `serial`."""

    request_id: str
    serial: int


@dataclass(frozen=True, slots=True)
class Unwant:
    """Receiver: stop sending the snapshot."""

    serial: int


@dataclass(frozen=True, slots=True)
class Whole:
    """Receiver: the whole snapshot has arrived."""

    serial: int


@dataclass(frozen=True, slots=True)
class Blob:
    """A tensor whose bytes follow through the channel. dtype: torch's name without "torch."."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class PartHead:
    """Sender: latents [start, stop) of a snapshot follow, then, with the last part, its linear state."""

    serial: int
    start: int
    stop: int
    latents: Blob
    state: Blob | None


@dataclass(frozen=True, slots=True)
class Filled:
    """Sender: the next slot of the arena holds this many bytes."""

    count: int


@dataclass(frozen=True, slots=True)
class Emptied:
    """Receiver: the oldest filled slot of the arena is free again."""


@dataclass(frozen=True, slots=True)
class WantWeights:
    """Receiver: send the weights whose id is `identity`."""

    identity: str


@dataclass(frozen=True, slots=True)
class WeightsHead:
    """Sender: a catalogue of so many bytes follows through the channel, then tensors of `total` bytes.

    plan: names the tensors and what is read into each, in order.
    """

    plan: str
    catalogue: int
    total: int


LinkMessage = (
    Hail | ArenaOffer | GroupOffer | StreamOffer | OfferAnswer | LinkFault | Want | Unwant | Whole
    | PartHead | Filled | Emptied | WantWeights | WeightsHead | NixlOffer
)  # fmt: skip
LINK: Codec[LinkMessage] = Codec(get_args(LinkMessage))
