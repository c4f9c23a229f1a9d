"""A rank's part of a kept snapshot on disk: written completely or not at all, and checked when it is read."""

import contextlib
import json
import os
import zlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from workers.cache.disk_folder import rank_file
from workers.cache.moves import Write
from workers.cache.snapshot_file import CRC, TOKEN_IDS, SnapshotHead
from workers.rank.state_codec import Packed


class DamagedFileError(RuntimeError):
    """A file is damaged: it differs from what was written."""


def write_part(write: Write, rank: int, tp: int, rows: list[tuple[int, Tensor]], state: Packed) -> None:
    """Write this rank's part. rows: its shard of each part's latents, and the part's tokens."""
    tensors = {TOKEN_IDS: torch.frombuffer(bytearray(write.token_ids), dtype=torch.int32)}
    tensors |= {f"rank{rank}.rows.{i}": shard.contiguous() for i, (_, shard) in enumerate(rows)}
    tensors |= {f"rank{rank}.state.{i}": values.contiguous() for i, values in enumerate(state.tensors)}
    head = SnapshotHead(
        write.weights_id, write.layout, write.state_dtype, write.position, write.scope,
        tuple(count for count, _ in rows), (rank,),
    )  # fmt: skip
    sums = {CRC + name: f"{crc_of(tensor):08x}" for name, tensor in tensors.items()}
    path = Path(rank_file(write.file, rank, tp))
    partial = path.with_suffix(".partial")
    try:
        partial.touch(mode=0o600)
        safetensors.torch.save_file(tensors, partial, metadata=head.metadata() | sums)
        partial.chmod(0o600)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_part(file: str, rank: int, tp: int) -> tuple[list[tuple[int, Tensor]], Packed]:
    """Read what `write_part` wrote; DamagedFileError if the file differs."""
    path = rank_file(file, rank, tp)
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise DamagedFileError(f"its file can't be read: {error}") from error
    for name, tensor in tensors.items():
        if metadata.get(CRC + name) != f"{crc_of(tensor):08x}":
            raise DamagedFileError(f"the checksum of {name} in its file does not match")
    parts = json.loads(metadata["parts"])
    rows = [(count, tensors[f"rank{rank}.rows.{i}"]) for i, count in enumerate(parts)]
    states = [name for name in sorted(tensors) if name.startswith(f"rank{rank}.state.")]
    return rows, Packed(tuple(tensors[name] for name in states))


def erase_part(file: str, rank: int, tp: int) -> None:
    """Remove this rank's file if there is one."""
    with contextlib.suppress(OSError):
        Path(rank_file(file, rank, tp)).unlink(missing_ok=True)


def crc_of(tensor: Tensor) -> int:
    """CRC-32 of a host tensor's bytes."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
