"""Encodes kept linear states for host memory: unchanged or in fewer bits. Live states are always fp32."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.config import StateDtype


@dataclass(frozen=True, slots=True)
class Packed:
    """An encoded state: its values, and for int8 a scale for each head."""

    tensors: tuple[Tensor, ...]

    def map(self, move: Callable[[Tensor], Tensor]) -> "Packed":
        """Apply a function to its tensors, for example to move them to another device."""
        return Packed(tuple(move(t) for t in self.tensors))


@dataclass(frozen=True, slots=True)
class StateCodec:
    """States [linear_layers, heads, key_dim, value_dim] fp32 to and from `dtype`.

    int8 keeps 127 steps to either side of zero of each head's largest value.
    """

    dtype: StateDtype = "float32"

    def pack(self, state: Tensor) -> Packed:
        """Encode a state, on its device."""
        if self.dtype == "float32":
            return Packed((state,))
        if self.dtype == "bfloat16":
            return Packed((state.bfloat16(),))
        scale = state.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        return Packed(((state / scale).round().to(torch.int8), scale))

    def unpack(self, packed: Packed) -> Tensor:
        """Decode to fp32."""
        values, *scales = packed.tensors
        return values.float() * scales[0] if scales else values.float()
