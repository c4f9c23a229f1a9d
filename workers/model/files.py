"""A checkpoint's files: where each tensor is, and an id of their content. Without torch."""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The manifest of a pre-sharded copy: its tp, its files, and the whole tensors' dtypes and shapes.
MANIFEST = "ranks.json"
# Key in a file's `__metadata__`, before a tensor's name: the CRC-32 of its bytes, eight hex digits. Our tools write it.
CHECKSUM = "crc32."
# Bits of an element, by safetensors' name of the dtype.
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
_OTHERS = (".gguf", ".bin", ".pt", ".pth")
_LFS_POINTER = b"version https://git-lfs"
_HEADER_LIMIT = 100_000_000
_SAMPLES = 256
_SAMPLE_BYTES = 4096


class WeightError(RuntimeError):
    """The checkpoint's files don't match its config; the message names tensor and file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file. dtype: as safetensors spells it. start: of its first byte in the file.

    crc: CRC-32 of its bytes, None where the file doesn't say.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int
    crc: int | None = None


def weight_map(folder: Path) -> dict[str, str]:
    """File name of each tensor: from the index, or of the only file."""
    index = folder / INDEX
    if index.exists():
        try:
            found = json.loads(index.read_bytes())["weight_map"]
            return {str(k): str(v) for k, v in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightError(f"{index} can't be read: {error!r}; copy it again") from error
    if not (folder / SINGLE).exists():
        other = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHERS)
        found = f"; {other[0]} is not read, only safetensors are" if other else ""
        raise WeightError(f"{folder} holds neither {INDEX} nor {SINGLE}{found}; copy the release's weights into it")
    return dict.fromkeys(read_header(folder / SINGLE), SINGLE)


def weight_files(folder: Path) -> list[str]:
    """Names of all files with weights, sorted."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        return sorted(set(weight_map(folder).values()))
    try:
        return sorted(str(f) for f in json.loads(manifest.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightError(f"{manifest} can't be read: {error!r}") from error


def weights_id(folder: Path, synthetic: bool = False, version: str | None = None) -> str:
    """A hex digest of config.json and every file's header and evenly spaced samples; or of the checkpoint's version.

    Fine-tunes share names, shapes and sizes, so values are sampled: 256 pieces of 4 KiB a shard. Synthetic weights
    follow from config.json alone. version: identifies the content of a fetched checkpoint, whose files need not be
    here.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if synthetic:
        digest.update(b"synthetic")
        return digest.hexdigest()
    if version is not None:
        digest.update(f"version {version}".encode())
        return digest.hexdigest()
    for name in weight_files(folder):
        digest.update(name.encode())
        try:
            with (folder / name).open("rb") as file:
                head = file.read(8)
                header = int.from_bytes(head, "little")
                size = (folder / name).stat().st_size
                if len(head) < 8 or header + 8 > size:
                    raise WeightError(f"{folder / name} is cut off: {size} bytes; copy it again")
                digest.update(size.to_bytes(8, "little"))
                digest.update(file.read(header))
                span = size - 8 - header
                for start in sample_starts(span):
                    file.seek(8 + header + start)
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise WeightError(f"{folder / name} can't be read: {error}") from error
    return digest.hexdigest()


def sample_starts(span: int) -> list[int]:
    """Where the samples of a file of `span` bytes begin; together they cover a small file completely."""
    if span <= _SAMPLES * _SAMPLE_BYTES:
        return list(range(0, span, _SAMPLE_BYTES))
    return [i * (span - _SAMPLE_BYTES) // (_SAMPLES - 1) for i in range(_SAMPLES)]


def read_header(path: Path) -> dict[str, Entry]:
    """A file's tensors; WeightError if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise WeightError(f"{path} is Git LFS's pointer to the file; fetch the file itself with `git lfs pull`")
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or 8 + length > size:
                raise ValueError("its header is incomplete")
            if length > _HEADER_LIMIT:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise WeightError(f"{path} is missing, though the checkpoint's index names it; copy it again") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    try:
        sums = {k: v for k, v in header.pop("__metadata__", {}).items() if k.startswith(CHECKSUM)}
        entries = {name: _entry(raw, 8 + length, sums.get(CHECKSUM + name)) for name, raw in header.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"its header is unreadable: {error!r}") from error
    for name, entry in entries.items():
        if entry.dtype in BITS and entry.bytes * 8 != prod(entry.shape) * BITS[entry.dtype]:
            raise _damaged(path, f"its header gives {name} {entry.bytes} bytes")
    end = max((e.start + e.bytes for e in entries.values()), default=8 + length)
    if end != size:
        raise _damaged(path, f"its header promises {end} bytes")
    return entries


def _entry(raw: Any, base: int, crc: str | None) -> Entry:
    start, stop = (int(n) for n in raw["data_offsets"])
    if not 0 <= start <= stop:
        raise ValueError(f"offsets {start}, {stop}")
    shape = tuple(int(n) for n in raw["shape"])
    return Entry(str(raw["dtype"]), shape, base + start, stop - start, None if crc is None else int(crc, 16))


def _damaged(path: Path, why: str) -> WeightError:
    size = path.stat().st_size if path.exists() else 0
    return WeightError(f"{path} ({size} bytes) is cut off or damaged: {why}; copy it again")
