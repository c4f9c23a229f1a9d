"""Payload through a torch.distributed process group of two, gloo or NCCL, apart from every other group.

The sender hosts the store the two meet at. A group that breaks affects no other group, and does not end its own
process.
"""

import ipaddress
import os
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore, Work

from workers.transfer.channel import Channel, LinkBroken, ReceiveChannel, SendChannel
from workers.transfer.control import Control
from workers.transfer.messages import GroupKind, GroupOffer

_MEET = timedelta(seconds=5)
_POLL_S = 50e-6
_SENDER, _RECEIVER = 0, 1
# Multiprocessors a link may take from the forward pass. Not measured yet.
_MOST_CTAS = 4
# torch reads these when it makes an NCCL group. As they are by default, a group's watchdog or monitor ends the process
# when an operation fails, so a prefill worker that dies would take decode workers along.
_SURVIVING = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
}
_ENVIRONMENT = threading.Lock()


class Meeting:
    """The sender's store, open to one receiver; `offer` says where."""

    def __init__(self, kind: GroupKind, host: str) -> None:
        # A store that binds by itself listens on every interface; this one only listens where links are accepted.
        listener = socket.create_server((host, 0), family=address_family(host))
        port = listener.getsockname()[1]
        self.store = TCPStore(
            host, port, 2, is_master=True, timeout=_MEET, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self.offer = GroupOffer(kind, host, port)

    def close(self) -> None:
        """Stop listening."""
        del self.store


class Visit:
    """The receiver's connection to that store; LinkBroken if it can't be reached."""

    def __init__(self, offer: GroupOffer) -> None:
        self.kind = offer.kind
        try:
            self.store = TCPStore(offer.host, offer.port, 2, is_master=False, timeout=_MEET)
        except RuntimeError as error:
            raise LinkBroken(f"no store at {offer.host}:{offer.port}: {_first_line(error)}") from error


class _Group(Protocol):
    def send(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...
    def abort(self) -> None: ...


class _Member(Channel):
    """One of the two. Making it moves one byte: NCCL connects at first use, which takes seconds."""

    # gloo's cost per operation is high, so nearly every tensor is sent whole.
    piece = 64 * 1024 * 1024

    def __init__(
        self, kind: GroupKind, store: Store, rank: int, device: torch.device, host: str, control: Control
    ) -> None:
        """`host`: the address gloo listens on at this end. LinkBroken if the peer does not join."""
        self.device = device if kind == "nccl" else torch.device("cpu")
        self.kind = kind
        self._control = control
        try:
            self._group: _Group | None = _nccl(store, rank) if kind == "nccl" else _gloo(store, rank, host)
        except RuntimeError as error:
            raise LinkBroken(f"no {kind} group with the peer: {_first_line(error)}") from error
        self._move(torch.zeros(1, dtype=torch.uint8, device=self.device))

    @abstractmethod
    def _move(self, piece: Tensor) -> None:
        """Send a piece, or fill it; LinkBroken."""

    def close(self) -> None:
        group, self._group = self._group, None
        if group is not None and self.kind == "nccl":
            group.abort()

    def _run(self, start: Callable[[_Group], Work], size: int) -> None:
        group = self._group
        if group is None:
            raise LinkBroken("the link is closed")
        try:
            work = start(group)
            if self.kind == "nccl":
                self._poll(work, self.allowed_s(size))
            else:
                work.wait(timedelta(seconds=self.allowed_s(size)))
        except RuntimeError as error:
            # Done while the tensor is still held: afterwards no kernel writes to its memory, which may then be reused.
            self.close()
            if isinstance(error, LinkBroken):
                raise
            raise LinkBroken(f"{self.kind}: {_first_line(error)}") from error
        # `close` aborts the operation, which then counts as completed.
        if self._group is not group:
            raise LinkBroken("the link is closed")

    def _poll(self, work: Work, allowed_s: float) -> None:
        """Wait for an NCCL operation. It does not notice a peer's death; the control connection does."""
        deadline = time.monotonic() + allowed_s
        while not work.is_completed():
            if self._control.gone():
                raise LinkBroken("the peer closed the connection or died")
            if time.monotonic() > deadline:
                raise LinkBroken(f"nothing moved for {allowed_s:.1f} s")
            time.sleep(_POLL_S)
        # A failed operation counts as completed too.
        if (error := work.exception()) is not None:
            raise LinkBroken(f"nccl: {_first_line(error)}")


class GroupSender(_Member, SendChannel):
    """The prefill rank's end; made once the receiver has joined, or LinkBroken."""

    def __init__(self, meeting: Meeting, device: torch.device, host: str, control: Control) -> None:
        super().__init__(meeting.offer.kind, meeting.store, _SENDER, device, host, control)

    def send(self, piece: Tensor) -> None:
        self._move(piece)

    def _move(self, piece: Tensor) -> None:
        self._run(lambda group: group.send([piece], _RECEIVER, 0), piece.numel())


class GroupReceiver(_Member, ReceiveChannel):
    """The decode rank's end; made once the sender has joined, or LinkBroken."""

    def __init__(self, visit: Visit, device: torch.device, host: str, control: Control) -> None:
        super().__init__(visit.kind, visit.store, _RECEIVER, device, host, control)

    def receive(self, piece: Tensor) -> None:
        self._move(piece)

    def _move(self, piece: Tensor) -> None:
        self._run(lambda group: group.recv([piece], _SENDER, 0), piece.numel())


def address_family(host: str) -> socket.AddressFamily:
    """IPv6 for an IPv6 address; else, names too, IPv4."""
    try:
        six = ipaddress.ip_address(host).version == 6
    except ValueError:
        six = False
    return socket.AF_INET6 if six else socket.AF_INET


def _gloo(store: Store, rank: int, host: str) -> _Group:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = _MEET
    options._devices = [gloo.create_device(hostname=host)]
    return cast(_Group, gloo(store, rank, 2, options))


def _nccl(store: Store, rank: int) -> _Group:
    if not dist.is_nccl_available():
        raise LinkBroken("this torch was built without NCCL: set channel to gloo")
    nccl: Any = dist.ProcessGroupNCCL
    # A stream of higher priority than the forward pass's, because both ends hold multiprocessors until the bytes have
    # moved.
    options = nccl.Options(is_high_priority_stream=True)
    options.config.max_ctas = _MOST_CTAS
    with _surviving():
        return cast(_Group, nccl(store, rank, 2, options))


@contextmanager
def _surviving() -> Iterator[None]:
    """While it is open, new NCCL groups do not end the process when they fail; all others keep torch's rule."""
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in _SURVIVING}
        os.environ.update(_SURVIVING)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
