"""Reads safetensors checkpoints by slice."""

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from safetensors import SafetensorError
from torch import Tensor

from workers.model.files import WeightError, open_file, weight_map

WHOLE = slice(None)


class Checkpoint:
    """A folder's tensors by name. Use as a context manager: files stay open (and mapped) in between."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of = weight_map(folder)
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._open.values():
            opened.__exit__(None, None, None)
        self._open.clear()

    def has(self, name: str) -> bool:
        """Whether the checkpoint lists a tensor of that name."""
        return name in self._file_of

    def dtype(self, name: str) -> str:
        """The tensor's dtype as safetensors spells it ("F32", "BF16", "F8_E4M3", "I32", …)."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str, shape: tuple[int, ...], *part: slice) -> "Tensor":
        """`part` (a slice a dimension, unmentioned ones whole) of a tensor that must have `shape`; no other byte
        of it is read. CPU, the file's dtype."""
        found = tuple(self._slice(name).get_shape())
        if found != shape:
            raise WeightError(f"{name} in {self._path(name)} has shape {list(found)}, expected {list(shape)}")
        whole = part or (WHOLE,) * len(shape)
        try:
            data: Tensor = self._slice(name)[whole]
        except SafetensorError as error:
            raise WeightError(f"{name} can't be read from {self._path(name)}: {error}") from error
        return data

    def _slice(self, name: str) -> Any:
        if name not in self._file_of:
            raise WeightError(f"{name} is in no file of {self._folder}")
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = open_file(self._folder / file)
        try:
            return self._open[file].get_slice(name)
        except SafetensorError as error:
            raise WeightError(f"{name} should be in {self._path(name)}, and is not: {error}") from error

    def _path(self, name: str) -> Path:
        return self._folder / self._file_of[name]


class Loadable(Protocol):
    """What takes its weights from a checkpoint."""

    def load(self, checkpoint: Checkpoint) -> None:
        """Read this rank's share."""


def load_weights(model: Loadable, folder: Path) -> None:
    """Fill a model from a checkpoint folder; WeightError names whatever is missing or wrong."""
    with Checkpoint(folder) as checkpoint:
        model.load(checkpoint)
