"""Safetensors files written tensor by tensor: memory holds one at a time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from cluster.convert.errors import ConvertError
from workers.model.files import BITS


@dataclass(frozen=True, slots=True)
class Promised:
    """A tensor a file will hold."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """In the file."""
        return prod(self.shape) * BITS[self.dtype] // 8


class ShardWriter:
    """One file, whose tensors come in the promised order. A context manager; OSError if the disk is full."""

    def __init__(self, path: Path, promised: Sequence[Promised]) -> None:
        self._left = list(reversed(promised))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor in promised:
            end = at + tensor.bytes
            header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # Readers that map the file want the data aligned.
        text += b" " * (-(len(text) + 8) % 64)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little"))
        self._file.write(text)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None and self._left:
            raise ConvertError(f"{self._file.name} lacks {self._left[-1].name}")

    def write(self, tensor: Tensor) -> None:
        """The next promised tensor."""
        promised = self._left.pop()
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        if data.nbytes != promised.bytes:
            raise ConvertError(f"{promised.name}: {data.nbytes} bytes instead of {promised.bytes}")
        self._file.write(data.data)
