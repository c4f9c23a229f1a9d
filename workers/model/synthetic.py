"""Made-up weights, which depend only on the tensor's name and the place in it, not on the rank that asks.

A row is a window into one table of random values, at an offset hashed from the tensor's name and the row's number: any
slice costs a copy of just that slice.
"""

import threading
import zlib

import torch
from torch import Tensor

from workers.model.loader import DTYPES, Read, SourceTensor
from workers.model.quantization import Quantization
from workers.model.released import TENSORS, is_quantized

_OFFSETS = 1 << 20
_WIDEST = 1 << 17
# Odd, so that it permutes row numbers (Knuth's multiplicative hash).
_MULTIPLIER = 2654435761
# The standard deviation of weights, also of quantized ones: sums over 4096 inputs keep their size.
_SCALE = 1 / 64
_INT4_DEVIATION = 4.6
_SCALES = ("weight_scale_inv", "weight_scale", "scales")
# An int32 whose eight 4-bit values are all in the middle of their range.
_ZEROS = -0x77777778


class Synthetic:
    """A checkpoint of any shape in a format, without files."""

    def __init__(self, quantization: Quantization) -> None:
        self._method = quantization.method
        self._tables: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> SourceTensor | None:
        """Any tensor that a module has in this format, with any shape."""
        module, _, suffix = name.rpartition(".")
        if suffix == "expert_bias":
            return SourceTensor("F32", None)
        dtype = TENSORS[self._method if is_quantized(self._method, module) else "none"].get(suffix)
        return SourceTensor(dtype, None) if dtype is not None else None

    def missing(self, name: str) -> str:
        """A message that says why `find` returns None."""
        return f"{name} is no tensor of a checkpoint in this format"

    def where(self, name: str) -> str:
        """The place of all tensors, for messages."""
        return "the synthetic checkpoint"

    def fill(self, read: Read) -> int:
        """Make a slice; returns its bytes."""
        suffix = read.name.rpartition(".")[2]
        if suffix == "expert_bias":
            read.out.zero_()
        elif suffix == "weight" and len(read.spans) == 1:
            read.out.fill_(1)
        elif suffix in _SCALES:
            read.out.fill_(_SCALE if self._method in ("fp8", "channel fp8") else _SCALE / _INT4_DEVIATION)
        elif suffix == "qzeros":
            read.out.fill_(_ZEROS)
        else:
            self._windows(read)
        return read.out.numel() * read.out.element_size()

    def order(self, read: Read) -> tuple[str, int]:
        """Keep any order."""
        return "", 0

    def close(self) -> None:
        """Forget the tables."""
        self._tables.clear()

    def _windows(self, read: Read) -> None:
        (start, stop), (first, last) = read.spans
        rows = torch.arange(start, stop, device=read.out.device)
        offsets = ((rows + zlib.crc32(read.name.encode())) * _MULTIPLIER % (1 << 32)) >> 12
        stored = self.find(read.name)
        assert stored is not None
        table = self._table(DTYPES[stored.dtype], read.out.device)
        chosen = table.as_strided((_OFFSETS, last - first), (1, 1), first).index_select(0, offsets)
        read.out.copy_(chosen.view(DTYPES[stored.dtype]))

    def _table(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A table of random values of a dtype.

        For 8-bit floats their bytes, because some devices can't index these floats.
        """
        with self._lock:
            if (dtype, device) not in self._tables:
                source = torch.Generator().manual_seed(0)
                count = _OFFSETS + _WIDEST
                if dtype == torch.int32:
                    table = torch.randint(-(1 << 31), 1 << 31, (count,), generator=source).to(torch.int32)
                elif dtype == torch.float8_e4m3fn:
                    table = torch.randn(count, generator=source).to(dtype).view(torch.int8)
                else:
                    table = (torch.randn(count, generator=source) * _SCALE).to(dtype)
                self._tables[dtype, device] = table.to(device)
            return self._tables[dtype, device]
