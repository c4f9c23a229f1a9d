"""A rank's part of a kept snapshot in a file: written completely or not at all, and checked when it is read."""

import contextlib
import os
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wire.snapshot_file import CRC, TOKEN_IDS, SnapshotFileError, SnapshotHead, read_head, token_hash
from wire.tokens import TokenIds
from workers.cache.disk_folder import rank_file
from workers.cache.moves import Write
from workers.config import StateDtype
from workers.rank.state_codec import Packed, StateCodec


class DamagedFileError(RuntimeError):
    """A file is damaged: it differs from what was written."""


def write_part(
    write: Write, rank: int, tp: int, rows: Sequence[tuple[int, Tensor]], states: Mapping[int, Packed]
) -> None:
    """Write this rank's part. rows: its shard of each part's latents, and the part's tokens. states: by the part that
    they follow.
    """
    tensors = {TOKEN_IDS: torch.frombuffer(bytearray(write.token_ids), dtype=torch.int32)}
    tensors |= {f"rank{rank}.rows.{i}": shard.contiguous() for i, (_, shard) in enumerate(rows)}
    for part, state in states.items():
        tensors |= {f"rank{rank}.state.{part}.{n}": values.contiguous() for n, values in enumerate(state.tensors)}
    head = SnapshotHead(
        write.weights_id, write.layout, write.state_dtype, write.position,
        token_hash(TokenIds(write.token_ids), write.position), write.scope,
        tuple(count for count, _ in rows), tuple(sorted(states)), tp, (rank,),
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


def read_part(file: str, rank: int, tp: int, position: int) -> tuple[list[tuple[int, Tensor]], Packed, StateCodec]:
    """Read this rank's shards of the first `position` latents, its state after them, and how that is packed.

    The file may hold a snapshot that was split over another number of ranks. DamagedFileError if the file differs from
    what was written, or has no state there.
    """
    path = Path(rank_file(file, rank, tp))
    try:
        content = read_head(path)
        with safetensors.safe_open(path, framework="pt") as opened:

            def tensor(name: str) -> Tensor:
                found: Tensor = opened.get_tensor(name)
                if content.sums.get(name) != f"{crc_of(found):08x}":
                    raise DamagedFileError(f"the checksum of {name} in its file does not match")
                return found

            head = content.head
            if position not in head.positions:
                raise DamagedFileError(f"its file has no state after {position} tokens")
            last = list(accumulate(head.parts)).index(position)
            owners = [rank] if head.split == tp else list(range(head.split))
            rows = []
            for part, count in enumerate(head.parts[: last + 1]):
                shards = [tensor(f"rank{owner}.rows.{part}") for owner in owners]
                rows.append((count, shards[0] if len(owners) == 1 else _share(torch.cat(shards)[:count], rank, tp)))
            names = [f"state.{last}.{n}" for n in range(2) if f"rank{owners[0]}.state.{last}.{n}" in content.tensors]
            states = [torch.cat([tensor(f"rank{owner}.{name}") for owner in owners], 1) for name in names]
    except (OSError, SnapshotFileError, safetensors.SafetensorError) as error:
        raise DamagedFileError(f"its file can't be read: {error}") from error
    if len(owners) > 1:
        states = [torch.chunk(values, tp, 1)[rank] for values in states]
    return rows, Packed(tuple(states)), StateCodec(cast(StateDtype, head.state_dtype))


def _share(rows: Tensor, rank: int, tp: int) -> Tensor:
    """A rank's shard of all rows of a part, padded with zeros where the ranks before have them all."""
    share = -(-len(rows) // tp)
    mine = rows[rank * share : (rank + 1) * share]
    return torch.cat([mine, mine.new_zeros(share - len(mine), *mine.shape[1:])])


def erase_part(file: str, rank: int, tp: int) -> None:
    """Remove this rank's file if there is one."""
    with contextlib.suppress(OSError):
        Path(rank_file(file, rank, tp)).unlink(missing_ok=True)


def crc_of(tensor: Tensor) -> int:
    """CRC-32 of a host tensor's bytes."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
