"""Whether a checkpoint's files are as they were written: every byte is read, summed and looked at."""

import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from workers.model.files import Entry, read_header, weight_files
from workers.model.loader import DTYPES, Progress, in_threads, raise_problems
from workers.model.mapped import Files
from workers.model.values import fault

# Small enough to stay in a core's cache between the looks at it; whole elements of any dtype.
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read. summed: tensors that came with a checksum."""

    files: int
    tensors: int
    summed: int
    progress: Progress

    def __str__(self) -> str:
        if self.summed == self.tensors:
            known = "all as they were written"
        elif self.summed:
            known = f"as they were written where they have a checksum ({self.summed:,}), else no impossible value"
        else:
            known = "no impossible value; there are no checksums (`ling convert` writes them), so no more can be told"
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        return f"{self.tensors:,} tensors in {files}, {self.progress}: {known}"


def verify(folder: Path, rank: int = 0, tp: int = 1, progress: Callable[[Progress], None] | None = None) -> Verified:
    """Read rank `rank`'s share of a folder's tensors, each of which is one of `tp` ranks'.

    WeightError with file and tensor for what doesn't match its checksum or can't be right.
    """
    files = weight_files(folder)
    every = [(file, name, entry) for file in files for name, entry in read_header(folder / file).items()]
    mine = every[rank::tp]
    problems: list[str] = []

    def look(file: str, name: str, entry: Entry) -> None:
        if (why := _fault(opened, file, name, entry)) is not None:
            problems.append(f"{name} in {folder / file} {why}; copy or convert the file again")

    start = time.monotonic()
    with closing(Files(folder)) as opened:
        total = in_threads([(partial(look, *each), each[2].bytes) for each in mine], progress)
    raise_problems(sorted(problems))
    end = Progress(total, total, time.monotonic() - start)
    if progress is not None:
        progress(end)
    return Verified(len(files), len(mine), sum(entry.crc is not None for _, _, entry in mine), end)


def _fault(files: Files, file: str, name: str, entry: Entry) -> str | None:
    """What is wrong with one tensor; None if nothing."""
    dtype = DTYPES.get(entry.dtype)
    block = torch.empty(min(_BLOCK_BYTES, entry.bytes), dtype=torch.uint8)
    found, crc = None, 0
    for at in range(0, entry.bytes, _BLOCK_BYTES):
        part = block[: entry.bytes - at]
        files.read(file, entry.start + at, part)
        crc = zlib.crc32(part.numpy().data, crc)
        if found is None and dtype is not None:
            # Pre-sharded copies name slices: what is in brackets is not part of the tensor's name.
            found = fault(name.partition("[")[0], part.view(dtype))
    return found if entry.crc in (None, crc) else "does not match its checksum"
