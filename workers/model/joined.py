"""Linears with the same input, computed as one product."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.model.formats import Part, kind
from workers.model.linear import Linear, Normed, Shard
from workers.model.loader import Loader


class Joined:
    """Several linears whose outputs are side by side: one matrix if all are in one format. Usable after `load`."""

    def __init__(self, shard: Shard, *linears: Sequence[Part]) -> None:
        self._shard = shard
        self._parts = linears
        self._linears: list[Linear]

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        alike = len({kind(loader, part.module) for parts in self._parts for part in parts}) == 1
        groups = [[part for parts in self._parts for part in parts]] if alike else self._parts
        self._linears = [Linear(self._shard, group) for group in groups]
        for linear in self._linears:
            linear.load(loader)

    @property
    def rounds_inputs(self) -> bool:
        """Whether one of them multiplies 8-bit floats."""
        return any(linear.rounds_inputs for linear in self._linears)

    def __call__(self, x: Normed) -> Tensor:
        """[T, in] to [T, all their outputs]."""
        outs = [linear(x) for linear in self._linears]
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)
