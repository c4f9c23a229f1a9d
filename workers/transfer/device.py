"""GPU streams and events for links. On a CPU they do nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Give this thread's work a stream of its own, so that it waits for no forward pass.

    Its priority is high: a kernel of the receiver holds multiprocessors until the sender's kernel has run.
    """
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_device(device)
    with torch.cuda.stream(torch.cuda.Stream(device, priority=-1)):  # type: ignore[no-untyped-call]
        yield


def once_computed(device: torch.device) -> Callable[[], object]:
    """Return a function that waits until the device has done the current stream's present work."""
    if device.type != "cuda":
        return _nothing
    # Blocking, so that the waiting thread sleeps and leaves its core to the rank's loop.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def used_here(tensor: Tensor) -> None:
    """Keep the memory of a tensor made on another stream until this stream's work on it is done."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def _nothing() -> None:
    return None
