"""Safetensors checkpoints as a source of weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from workers.model.files import Entry, read_header, weight_map
from workers.model.loader import Loader, Progress, Read, Source, SourceTensor
from workers.model.mapped import Files
from workers.model.sharded import RankFiles, is_sharded


class Checkpoint:
    """A folder's tensors by name. WeightError at once if a file is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of = weight_map(folder)
        self._entries = {file: read_header(folder / file) for file in sorted(set(self._file_of.values()))}
        self._files = Files(folder)

    def names(self) -> list[str]:
        """All tensors."""
        return list(self._file_of)

    def entry(self, name: str) -> Entry | None:
        """A tensor's place in its file."""
        return self._entries[self._file_of[name]].get(name) if name in self._file_of else None

    def find(self, name: str) -> SourceTensor | None:
        """The folder's tensor with this name; None if there is none."""
        entry = self.entry(name)
        return SourceTensor(entry.dtype, entry.shape) if entry is not None else None

    def missing(self, name: str) -> str:
        """A message that says why `find` returns None."""
        if name not in self._file_of:
            return f"{name} is in no file of {self._folder}; copy the release's weights and their index again"
        return f"{name} should be in {self.where(name)}, and is not; copy the file again"

    def where(self, name: str) -> str:
        """The file of a tensor."""
        return str(self._folder / self._file_of[name])

    def fill(self, read: Read) -> int:
        """Do a read; returns the bytes taken from the file."""
        return self._files.fill(self._file_of[read.name], self._place(read), read.spans, read.out)

    def order(self, read: Read) -> tuple[str, int]:
        """Order reads by place in the files."""
        return self._file_of[read.name], self._place(read).start

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _place(self, read: Read) -> Entry:
        return self._entries[self._file_of[read.name]][read.name]


class Loadable(Protocol):
    """A model that takes its weights from a loader, as rank `rank` of `tp`."""

    @property
    def rank(self) -> int:
        """The model's rank."""

    @property
    def tp(self) -> int:
        """The number of ranks that share the model."""

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""


def open_checkpoint(folder: Path, rank: int, tp: int) -> Source:
    """Open a checkpoint folder, or a pre-sharded copy of one."""
    return RankFiles(folder, rank, tp) if is_sharded(folder) else Checkpoint(folder)


def load_weights(model: Loadable, folder: Path, progress: Callable[[Progress], None] | None = None) -> Progress:
    """Fill a model from a checkpoint folder; WeightError names whatever is missing or wrong."""
    return load_from(model, open_checkpoint(folder, model.rank, model.tp), progress)


def load_from(model: Loadable, source: Source, progress: Callable[[Progress], None] | None = None) -> Progress:
    """Fill a model and close its source; nothing is fetched if anything is wrong."""
    try:
        loader = Loader(source)
        model.load(loader)
        return loader.run(progress)
    finally:
        source.close()
