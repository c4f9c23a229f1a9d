"""Safetensors files written tensor by tensor: memory holds one at a time. Each tensor's checksum is in the header."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from cluster.convert.errors import ConvertError
from workers.model.files import BITS, CHECKSUM


@dataclass(frozen=True, slots=True)
class Promised:
    """A tensor that a file will contain."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its bytes in the file."""
        return prod(self.shape) * BITS[self.dtype] // 8


class ShardWriter:
    """One file, whose tensors come in the promised order. A context manager; OSError if the disk is full."""

    def __init__(self, path: Path, promised: Sequence[Promised]) -> None:
        self._promised = promised
        self._left = list(reversed(promised))
        self._sums: dict[str, int] = {}
        self._file = path.open("wb")
        # A placeholder: checksums are known only at the end, and have the same length.
        self._write_header()

    def _write_header(self) -> None:
        sums = {CHECKSUM + t.name: f"{self._sums.get(t.name, 0):08x}" for t in self._promised}
        header: dict[str, object] = {"__metadata__": {"format": "pt"} | sums}
        at = 0
        for tensor in self._promised:
            end = at + tensor.bytes
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # Readers that map the file want the data aligned.
        text += b" " * (-(len(text) + 8) % 64)
        self._file.seek(0)
        self._file.write(len(text).to_bytes(8, "little"))
        self._file.write(text)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is not None:
                return
            if self._left:
                raise ConvertError(f"{self._file.name} lacks {self._left[-1].name}")
            self._write_header()

    def write(self, tensor: Tensor) -> None:
        """Write the next promised tensor."""
        promised = self._left.pop()
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        if data.nbytes != promised.bytes:
            raise ConvertError(f"{promised.name}: {data.nbytes} bytes instead of {promised.bytes}")
        self._sums[promised.name] = zlib.crc32(data.data)
        self._file.write(data.data)
