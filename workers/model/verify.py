"""Verifies a checkpoint's files: reads every byte, and checks checksums and values."""

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

# Bytes of a piece: small enough to stay in a core's cache between two checks; whole elements of any dtype.
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What was verified. summed: the number of tensors with a checksum."""

    files: int
    tensors: int
    summed: int
    progress: Progress

    def __str__(self) -> str:
        if self.summed == self.tensors:
            known = "all as they were written"
        elif self.summed:
            known = (
                f"as they were written where they have a checksum ({self.summed:,}); no impossible value in the others"
            )
        else:
            known = "no impossible value; there are no checksums (`ling convert` writes them) to find other damage by"
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        return f"{self.tensors:,} tensors in {files}, {self.progress}: {known}"


def verify(folder: Path, rank: int = 0, tp: int = 1, progress: Callable[[Progress], None] | None = None) -> Verified:
    """Verify the share of rank `rank` of the folder's tensors; each tensor is the share of one of `tp` ranks.

    WeightError names the file and the tensor that doesn't match its checksum or has impossible values.
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
            # In a pre-sharded copy, names end with a slice in brackets, which is not part of the tensor's name.
            found = fault(name.partition("[")[0], part.view(dtype))
    return found if entry.crc in (None, crc) else "does not match its checksum"
