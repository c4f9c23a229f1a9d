"""The file format of kept snapshots, and reading everything but the tensors. Without torch.

A file is safetensors. Its metadata is a `SnapshotHead`, one JSON text a field; its tensors are `token_ids` and, for
each rank, `rank<r>.rows.<i>` (that rank's shard of the latents of `parts[i]` tokens) and `rank<r>.state.<i>` (its
state, as `StateCodec` packs it). `crc32.<tensor>` in the metadata is the CRC-32 of the tensor's bytes.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FORMAT = "ling-snapshot/1"
TOKEN_IDS = "token_ids"
CRC = "crc32."
_LENGTH = struct.Struct("<Q")
_MOST_HEAD = 16 * 1024 * 1024


class SnapshotFileError(ValueError):
    """A file is no complete snapshot; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """The description of a snapshot.

    weights_id, layout: of the worker that made it, as in `WorkerInfo`. state_dtype: how its states are packed. A worker
    that differs in one of these can't continue it. position: the number of tokens whose latents and state are inside.
    scope: its prefix scope. parts: the tokens of each part into which its latents are cut. ranks: the ranks whose
    tensors are in the file.
    """

    weights_id: str
    layout: str
    state_dtype: str
    position: int
    scope: str
    parts: tuple[int, ...]
    ranks: tuple[int, ...]
    format: str = FORMAT

    def metadata(self) -> dict[str, str]:
        """The head as safetensors metadata."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A file's head, its token ids (packed int32, at least `position` of them), and each tensor's place in the file."""

    head: SnapshotHead
    token_ids: bytes
    bytes: int
    metadata: Mapping[str, str]


def read_head(path: Path) -> SnapshotFile:
    """Read everything but the tensors of states and latents; SnapshotFileError if it is damaged or incomplete."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_MOST_HEAD, size):
                raise SnapshotFileError(f"{path.name} is no safetensors file, or is cut short")
            described: dict[str, Any] = json.loads(file.read(length))
            metadata: dict[str, str] = described.pop("__metadata__", {})
            head = _head(metadata)
            end = max((entry["data_offsets"][1] for entry in described.values()), default=0)
            begin = _LENGTH.size + length
            if begin + end != size:
                raise SnapshotFileError(f"{path.name} has {size} bytes, its header describes {begin + end}")
            first, last = described[TOKEN_IDS]["data_offsets"]
            file.seek(begin + first)
            token_ids = file.read(last - first)
    except SnapshotFileError:
        raise
    except OSError as error:
        raise SnapshotFileError(f"{path.name} can't be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SnapshotFileError(f"{path.name} is no snapshot: {error!r}") from error
    if f"{zlib.crc32(token_ids):08x}" != metadata.get(CRC + TOKEN_IDS):
        raise SnapshotFileError(f"{path.name} is damaged: the checksum of its token ids does not match")
    if not 0 < head.position <= len(token_ids) // 4 or sum(head.parts) != head.position:
        raise SnapshotFileError(f"{path.name} is damaged: its header contradicts itself")
    return SnapshotFile(head, token_ids, size, metadata)


def _head(metadata: Mapping[str, str]) -> SnapshotHead:
    if json.loads(metadata.get("format", "null")) != FORMAT:
        raise SnapshotFileError(f"it is no snapshot of the format {FORMAT}")
    values = {field.name: json.loads(metadata[field.name]) for field in fields(SnapshotHead)}
    values["parts"], values["ranks"] = tuple(values["parts"]), tuple(values["ranks"])
    return SnapshotHead(**values)
