"""A rank's part of a kept snapshot in files: each written completely or not at all, and checked when it is read."""

import contextlib
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from wire.snapshot_file import SnapshotFile, SnapshotFileError, SnapshotHead, pack, read_head, token_hash
from wire.tokens import TokenIds
from workers.cache.disk_folder import rank_file
from workers.cache.moves import Write
from workers.config import StateDtype
from workers.rank.state_codec import Packed, StateCodec

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class DamagedFileError(RuntimeError):
    """A file is damaged: it differs from what was written."""


def write_part(
    write: Write, rank: int, tp: int, rows: Sequence[tuple[int, Tensor]], states: Mapping[int, Packed]
) -> None:
    """Write this rank's part. rows: its shard of each part's latents, and the part's tokens. states: by the part that
    they follow.
    """
    tensors = {f"rank{rank}.rows.{i}": shard for i, (_, shard) in enumerate(rows)}
    for part, state in states.items():
        tensors |= {f"rank{rank}.state.{part}.{n}": values for n, values in enumerate(state.tensors)}
    ids = TokenIds(write.token_ids)
    head = SnapshotHead(
        write.weights_id, write.layout, write.state_dtype, write.position,
        token_hash(ids, write.position - write.start), write.scope,
        tuple(count for count, _ in rows), tuple(sorted(states)), tp, (rank,), start=write.start, before=write.before,
    )  # fmt: skip
    raw = {name: bytes_of(tensor) for name, tensor in tensors.items()}
    described = {
        name: (_NAMES[tensor.dtype], tuple(tensor.shape), len(raw[name]), f"{zlib.crc32(raw[name]):08x}")
        for name, tensor in tensors.items()
    }
    path = Path(rank_file(write.file, rank, tp))
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(pack(head, described, ids))
            for values in raw.values():
                file.write(values)
        used = time.time() - write.age_s
        os.utime(partial, (used, used))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_part(
    files: Sequence[str], rank: int, tp: int, position: int
) -> tuple[list[tuple[int, Tensor]], Packed, StateCodec]:
    """Read this rank's shards of the latents up to `position` in these files, its state after them, and its codec.

    The last file has that state, and may hold a snapshot that was split over another number of ranks. DamagedFileError
    if a file differs from what was written, or has no state there.
    """
    rows: list[tuple[int, Tensor]] = []
    try:
        for name in files:
            path = Path(rank_file(name, rank, tp))
            content = read_head(path, may_be_cut=True)
            head = content.head
            parts = len(head.parts)
            if name == files[-1]:
                if position not in head.positions or content.cut:
                    raise DamagedFileError(f"its file has no state after {position} tokens")
                parts = list(accumulate(head.parts)).index(position - head.start) + 1
            owners = [rank] if head.split == tp else list(range(head.split))
            with path.open("rb") as file:
                for part, count in enumerate(head.parts[:parts]):
                    shards = [_read(file, content, f"rank{owner}.rows.{part}") for owner in owners]
                    whole = None if head.split == tp else torch.cat(shards)[:count]
                    rows.append((count, shards[0] if whole is None else _share(whole, rank, tp)))
                if name == files[-1]:
                    names = [f"state.{parts - 1}.{n}" for n in range(2)]
                    there = [n for n in names if f"rank{owners[0]}.{n}" in content.tensors]
                    states = [torch.cat([_read(file, content, f"rank{o}.{n}") for o in owners], 1) for n in there]
    except (OSError, SnapshotFileError, KeyError, ValueError) as error:
        raise DamagedFileError(f"its file can't be read: {error}") from error
    if head.split != tp:
        states = [torch.chunk(values, tp, 1)[rank] for values in states]
    return rows, Packed(tuple(states)), StateCodec(cast(StateDtype, head.state_dtype))


def _read(file: BinaryIO, content: SnapshotFile, name: str) -> Tensor:
    entry = content.tensors[name]
    raw = bytearray(entry.end - entry.begin)
    file.seek(entry.begin)
    if file.readinto(raw) < len(raw) or content.sums.get(name) != f"{zlib.crc32(raw):08x}":  # type: ignore[attr-defined]
        raise DamagedFileError(f"the checksum of {name} in its file does not match")
    return torch.frombuffer(raw, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)


def _share(rows: Tensor, rank: int, tp: int) -> Tensor:
    """A rank's shard of all rows of a part, padded with zeros where the ranks before have them all."""
    share = -(-len(rows) // tp)
    mine = rows[rank * share : (rank + 1) * share]
    return torch.cat([mine, mine.new_zeros(share - len(mine), *mine.shape[1:])])


def erase_part(file: str, rank: int, tp: int, *, latents: bool = True) -> None:
    """Remove this rank's file if there is one, or the states in it alone."""
    path = Path(rank_file(file, rank, tp))
    with contextlib.suppress(OSError, SnapshotFileError):
        if latents:
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, read_head(path, may_be_cut=True).stateless)


def bytes_of(tensor: Tensor) -> memoryview:
    """A host tensor's bytes."""
    values: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return values
