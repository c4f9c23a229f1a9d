"""A checkpoint's files: which tensor lies in which, and a name for their content. Knows no torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SAMPLES = 256
_SAMPLE_BYTES = 4096


class WeightError(RuntimeError):
    """The checkpoint's files don't hold what its config promises; the message names tensor and file."""


def weight_map(folder: Path) -> dict[str, str]:
    """File name of each tensor: from the index, or of the only file."""
    index = folder / _INDEX
    if index.exists():
        try:
            found = json.loads(index.read_bytes())["weight_map"]
            return {str(k): str(v) for k, v in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightError(f"{index} can't be read: {error!r}") from error
    if not (folder / _SINGLE).exists():
        raise WeightError(f"{folder} holds neither {_INDEX} nor {_SINGLE}")
    with open_file(folder / _SINGLE) as opened:
        return dict.fromkeys(opened.keys(), _SINGLE)


def weights_id(folder: Path) -> str:
    """A hex digest of config.json and every shard's header and evenly spaced samples.

    Fine-tunes share names, shapes and sizes, so values are sampled: 256 pieces of 4 KiB a shard.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in sorted(set(weight_map(folder).values())):
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
    """Where the samples of `span` bytes begin; together they cover a small file wholly."""
    if span <= _SAMPLES * _SAMPLE_BYTES:
        return list(range(0, span, _SAMPLE_BYTES))
    return [i * (span - _SAMPLE_BYTES) // (_SAMPLES - 1) for i in range(_SAMPLES)]


def open_file(path: Path) -> Any:
    """The file, mapped; WeightError if it is missing or damaged."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise WeightError(f"{path} is missing, though the checkpoint's index names it") from None
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise WeightError(f"{path} ({size} bytes) is cut off or damaged: {error}; copy it again") from error
