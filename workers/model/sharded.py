"""Pre-sharded copies: each rank's slices in one file of its own, in the order the rank asks for them."""

import json
from pathlib import Path

from workers.model.files import MANIFEST, Entry, WeightError, read_header
from workers.model.loader import Read, SourceTensor
from workers.model.mapped import Files


def is_sharded(folder: Path) -> bool:
    """Whether the folder is a pre-sharded copy."""
    return (folder / MANIFEST).exists()


def made_for(folder: Path) -> int:
    """The number of ranks that a pre-sharded copy is for; 1 for any other folder. WeightError if it can't be read."""
    return _manifest(folder)[0] if is_sharded(folder) else 1


def _manifest(folder: Path) -> tuple[int, dict[str, SourceTensor]]:
    """A copy's number of ranks, and the dtypes and shapes of the whole tensors."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        return int(manifest["tp"]), {
            str(n): SourceTensor(str(d), tuple(s)) for n, (d, s) in manifest["tensors"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightError(f"{path} can't be read: {error!r}") from error


def rank_file(rank: int, tp: int) -> str:
    """Name of one rank's file."""
    return f"rank-{rank}-of-{tp}.safetensors"


def slice_name(name: str, spans: tuple[tuple[int, int], ...]) -> str:
    """The name of a slice in a rank's file."""
    return f"{name}[{','.join(f'{a}:{b}' for a, b in spans)}]"


class RankFiles:
    """One rank's file, and the dtypes and shapes of the whole tensors."""

    def __init__(self, folder: Path, rank: int, tp: int) -> None:
        self._folder = folder
        ranks, self._whole = _manifest(folder)
        if ranks != tp:
            raise WeightError(f"{folder} is sharded for tp {ranks}, not {tp}: serve it with tp {ranks}")
        self._file = rank_file(rank, tp)
        self._entries = read_header(folder / self._file)
        self._files = Files(folder)
        self._starts: dict[str, list[tuple[tuple[tuple[int, int], ...], Entry]]] = {}
        for key, entry in self._entries.items():
            name, _, spans = key.removesuffix("]").rpartition("[")
            pairs = tuple((int(a), int(b)) for a, _, b in (s.partition(":") for s in spans.split(",") if s))
            self._starts.setdefault(name, []).append((pairs, entry))

    def find(self, name: str) -> SourceTensor | None:
        """The whole tensor, if the file has slices of it."""
        return self._whole.get(name) if name in self._starts else None

    def missing(self, name: str) -> str:
        """A message that says why `find` returns None."""
        return f"{name} is not in {self.where(name)}"

    def where(self, name: str) -> str:
        """The rank's file."""
        return str(self._folder / self._file)

    def fill(self, read: Read) -> int:
        """Do a read; returns the bytes taken from the file."""
        entry, spans = self._place(read)
        return self._files.fill(self._file, entry, spans, read.out)

    def order(self, read: Read) -> tuple[str, int]:
        """Order reads by place in the file."""
        return self._file, self._place(read)[0].start

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def _place(self, read: Read) -> tuple[Entry, tuple[tuple[int, int], ...]]:
        """The stored slice that contains a read, and the read relative to the slice."""
        for held, entry in self._starts.get(read.name, ()):
            if all(a <= c and d <= b for (a, b), (c, d) in zip(held, read.spans, strict=True)):
                return entry, tuple((c - a, d - a) for (a, _), (c, d) in zip(held, read.spans, strict=True))
        raise WeightError(f"{slice_name(read.name, read.spans)} is not in {self.where(read.name)}; convert it again")
