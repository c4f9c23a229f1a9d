"""Lets the two ends of a new link agree on a channel: the sender offers, the receiver tries."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from wire.tls import Tls
from workers.transfer.channel import LinkBroken, ReceiveChannel, SendChannel
from workers.transfer.control import Control
from workers.transfer.messages import ArenaOffer, Choice, GroupOffer, Hail, Kind, NixlOffer, OfferAnswer, StreamOffer
from workers.transfer.nixl import NixlReceiver, NixlSender
from workers.transfer.nixl_agent import INSTALL, ability
from workers.transfer.shm import ShmReceiver, ShmSender
from workers.transfer.stream import StreamMeeting, StreamVisit
from workers.transfer.torch_dist import GroupReceiver, GroupSender, Meeting, Visit


@dataclass(frozen=True, slots=True)
class Identity:
    """One rank, as it presents itself on its links.

    ranks: of its worker. host: the address it listens on. secret, tls: the cluster's.
    """

    worker_id: str
    rank: int
    ranks: int
    host: str
    device: torch.device
    channel: Choice
    secret: str = field(repr=False)
    tls: Tls | None


def machine() -> str:
    """Equal in two processes that can open each other's shared memory: same kernel, process namespace and user.

    "" where there is no such memory.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:
        return ""


def candidates(own: Hail, peer: Hail, sealed: bool = False) -> tuple[Kind, ...]:
    """The channels to try, best first; LinkBroken, which says what to set, if the two ends' settings can't be met.

    sealed: payload that leaves the host uses TLS, unless both ask for another channel by name.
    """
    wanted: set[Kind] = {c for c in (own.channel, peer.channel) if c != "auto"}
    together = own.machine == peer.machine != ""
    cuda = own.device == peer.device == "cuda"
    if len(wanted) == 2:
        raise LinkBroken(
            f"{own.worker_id} has channel {own.channel}, {peer.worker_id} has {peer.channel}: "
            "give both the same, or one of them auto"
        )
    if "shm" in wanted and not together:
        raise LinkBroken(
            f"channel shm needs {own.worker_id} and {peer.worker_id} on one host, in one container and of one user: "
            "set channel to auto or gloo"
        )
    if "nccl" in wanted and not cuda:
        raise LinkBroken(
            f"channel nccl needs GPUs on both sides, {own.worker_id} computes on {own.device}, "
            f"{peer.worker_id} on {peer.device}: set channel to auto or gloo"
        )
    for end in (own, peer):
        if "nixl" in wanted and end.nixl == "none":
            raise LinkBroken(
                f"channel nixl needs NIXL on both sides, and {end.worker_id} has none: {INSTALL}, "
                "or set channel to auto"
            )
    for kind in wanted:
        return (kind,)
    if sealed and not together:
        return ("tls",)
    if together and own.device == peer.device == "cpu":
        return ("shm", "gloo")
    plain: Kind = "nccl" if cuda else "gloo"
    return ("nixl", plain) if own.nixl == peer.nixl == "rdma" and not sealed else (plain,)


def hail(me: Identity) -> Hail:
    """The Hail of a rank."""
    return Hail(me.worker_id, me.rank, me.ranks, machine(), me.device.type, me.channel, ability())


def offer_channel(me: Identity, peer: Hail, control: Control) -> SendChannel:
    """The sender's side, after the receiver's Hail: the first channel that works. LinkBroken if none does."""
    refusal = ""
    for kind in candidates(hail(me), peer, me.tls is not None):
        try:
            opening = _open(me, kind, control)
        except (OSError, LinkBroken) as error:
            refusal = f"no {kind} channel can be made here: {error}"
            continue
        try:
            control.send(opening.offer)
            refusal = _answer(control)
        except LinkBroken:
            opening.close()
            raise
        if not refusal:
            match opening:
                case ShmSender():
                    return opening
                case NixlSender():
                    opening.stand()
                    return opening
                case StreamMeeting():
                    return opening.join(_tls(me))
                case Meeting():
                    return GroupSender(opening, me.device, me.host, control)
        opening.close()
    raise LinkBroken(refusal)


def _open(me: Identity, kind: Kind, control: Control) -> ShmSender | NixlSender | StreamMeeting | Meeting:
    match kind:
        case "shm":
            return ShmSender(control)
        case "nixl":
            return NixlSender(control, me.device, me.host)
        case "tls":
            return StreamMeeting(me.host)
        case _:
            return Meeting(kind, me.host)


def _tls(me: Identity) -> Tls:
    if me.tls is None:
        raise LinkBroken("the peer wants TLS, and here it is off: set RAY_USE_TLS on every node")
    return me.tls


def accept_channel(me: Identity, control: Control) -> ReceiveChannel:
    """The receiver's side: hail, then take the first offer that works from here. LinkBroken if none does."""
    control.send(hail(me))
    while True:
        offer = control.receive()
        try:
            match offer:
                case ArenaOffer():
                    opening: ShmReceiver | NixlReceiver | StreamVisit | Visit = ShmReceiver(control, offer)
                case NixlOffer():
                    opening = NixlReceiver(control, offer, me.device, me.host)
                case StreamOffer():
                    opening = StreamVisit(offer)
                case GroupOffer():
                    opening = Visit(offer)
                case _:
                    raise LinkBroken(f"expected an offer, got {type(offer).__name__}")
        except (OSError, LinkBroken) as error:
            control.send(OfferAnswer(str(error)))
            continue
        # Joining a group waits for the other end and can't be cancelled, so join only when the other end is about to.
        control.send(OfferAnswer())
        match opening:
            case ShmReceiver() | NixlReceiver():
                return opening
            case StreamVisit():
                return opening.join(_tls(me))
            case Visit():
                return GroupReceiver(opening, me.device, me.host, control)


def _answer(control: Control) -> str:
    answer = control.receive()
    if not isinstance(answer, OfferAnswer):
        raise LinkBroken(f"expected an answer, got {type(answer).__name__}")
    return answer.refusal or ""
