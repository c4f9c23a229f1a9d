"""Reads device tensors without stopping the device: copies leave in stream order and are read when they are needed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Readback:
    """Host copies of device tensors, with their values at this point of the stream."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [_copied(tensor) for tensor in tensors]
        self._done: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    @property
    def ready(self) -> bool:
        """Whether `lists` returns at once."""
        return self._done is None or bool(self._done.query())  # type: ignore[no-untyped-call]

    def lists(self) -> list[Any]:
        """Each tensor as nested lists; waits for the device to reach the copies, and for nothing behind them."""
        if self._done is not None:
            self._done.synchronize()
        return [copy.tolist() for copy in self._copies]


def _copied(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
