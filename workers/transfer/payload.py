"""Sends and receives tensors as bytes over a channel."""

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.transfer.channel import Channel, LinkBroken, ReceiveChannel, SendChannel
from workers.transfer.messages import Blob

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# From this size on new memory uses huge pages, because the first touch of small pages costs five times the copy.
_HUGE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a snapshot: a shard of latents [start, stop), [rows, layers, width].

    The last part also has the state.

    computed: returns once the tensors have their values.
    """

    start: int
    stop: int
    latents: Tensor
    state: Tensor | None
    computed: Callable[[], object]


def shares_of(rows: Tensor, state: Tensor | None, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Split a rank's rows and heads over so many receiving ranks; rows are padded with zeros to equal numbers."""
    if count == 1:
        yield rows, state
        return
    share = -(-len(rows) // count)
    rows = torch.cat([rows, rows.new_zeros(share * count - len(rows), *rows.shape[1:])])
    heads = [None] * count if state is None else torch.chunk(state, count, 1)
    yield from zip(torch.split(rows, share) if share else [rows] * count, heads, strict=True)


def blob(tensor: Tensor) -> Blob:
    """The announcement of a tensor, by which the receiver makes room; KeyError for a dtype that can't be sent."""
    return Blob(tuple(tensor.shape), _NAMES[tensor.dtype])


def size_of(*blobs: Blob | None) -> int:
    """The bytes of an announced tensor; 0 for None. LinkBroken for an impossible one."""
    return sum(_bytes(what) for what in blobs if what is not None)


def send_tensor(channel: SendChannel, tensor: Tensor) -> None:
    """Send a tensor's bytes; LinkBroken."""
    for piece in pieces(channel, tensor.to(channel.device).contiguous()):
        channel.send(piece)


def receive_tensor(channel: ReceiveChannel, what: Blob) -> Tensor:
    """Receive the tensor announced as `what`, on the channel's device; LinkBroken."""
    tensor = _room(what, channel.device)
    for piece in pieces(channel, tensor):
        channel.receive(piece)
    return tensor


def skip_tensor(channel: ReceiveChannel, what: Blob) -> None:
    """Read and drop the tensor announced as `what`; LinkBroken."""
    left = _bytes(what)
    scratch = torch.empty(min(left, channel.piece), dtype=torch.uint8, device=channel.device)
    while left:
        piece = scratch[: min(left, channel.piece)]
        channel.receive(piece)
        left -= piece.numel()


def pieces(channel: Channel, tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a contiguous tensor on the channel's device, in the pieces that the channel moves."""
    flat = tensor.reshape(-1).view(torch.uint8)
    for at in range(0, flat.numel(), channel.piece):
        yield flat[at : at + channel.piece]


def _bytes(what: Blob) -> int:
    if what.dtype not in _DTYPES or min(what.shape, default=0) < 0:
        raise LinkBroken(f"the peer announced a tensor that can't be: {what}")
    return math.prod(what.shape) * _DTYPES[what.dtype].itemsize


def _room(what: Blob, device: torch.device) -> Tensor:
    size = _bytes(what)
    dtype = _DTYPES[what.dtype]
    try:
        if device.type != "cpu" or size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(what.shape, dtype=dtype, device=device)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=dtype).view(what.shape)
    except (RuntimeError, OSError) as error:
        raise LinkBroken(f"no room for a part of {size} bytes: {error}") from error
