"""A session as a file: its tokens, and how its last answer was sampled.

A safetensors file with one tensor, `token_ids` (int32), and metadata of JSON texts: `format`, `model`, `weights_id`,
`prompt_tokens` (how many of the tokens are the last request's prompt; the rest is its answer), `sampling`
(`SamplingParams`), and `crc32.token_ids`, the CRC-32 of the tensor's bytes in hex.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec

from wire.protocol import SamplingParams
from wire.tokens import TokenIds

FORMAT = "ling-session/1"
_LENGTH = struct.Struct("<Q")
_TENSOR = "token_ids"
_CRC = "crc32.token_ids"


class SessionFileError(ValueError):
    """Bytes are no complete session file; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A session's tokens up to the end of its last answer."""

    model: str
    weights_id: str
    prompt_tokens: int
    sampling: SamplingParams
    token_ids: TokenIds

    @property
    def answer(self) -> tuple[int, ...]:
        """The last answer's tokens."""
        return tuple(self.token_ids[self.prompt_tokens :])

    def pack(self) -> bytes:
        """The file's bytes."""
        data = self.token_ids.packed
        described = {
            "__metadata__": {
                "format": json.dumps(FORMAT),
                "model": json.dumps(self.model),
                "weights_id": json.dumps(self.weights_id),
                "prompt_tokens": json.dumps(self.prompt_tokens),
                "sampling": msgspec.json.encode(self.sampling).decode(),
                _CRC: f"{zlib.crc32(data):08x}",
            },
            _TENSOR: {"dtype": "I32", "shape": [len(self.token_ids)], "data_offsets": [0, len(data)]},
        }
        head = json.dumps(described).encode()
        head += b" " * (-len(head) % 8)
        return _LENGTH.pack(len(head)) + head + data


def unpack(content: bytes) -> SessionFile:
    """A file's content; SessionFileError if it is damaged, cut short, or something else."""
    if len(content) < _LENGTH.size:
        raise SessionFileError("it is cut short: not even its header's length is there")
    (length,) = _LENGTH.unpack(content[: _LENGTH.size])
    data = content[_LENGTH.size + length :]
    if length > len(content) - _LENGTH.size:
        raise SessionFileError("it is cut short, or no safetensors file")
    try:
        described: dict[str, Any] = json.loads(content[_LENGTH.size : _LENGTH.size + length])
        metadata = described["__metadata__"]
        if (found := json.loads(metadata["format"])) != FORMAT:
            raise SessionFileError(f"its format is {found!r}; this version reads {FORMAT!r}")
        begin, end = described[_TENSOR]["data_offsets"]
        if begin != 0 or end != len(data):
            raise SessionFileError(f"it is cut short: {len(data)} of {end} bytes of tokens are there")
        if metadata[_CRC] != f"{zlib.crc32(data):08x}":
            raise SessionFileError("it is damaged: the checksum of its tokens does not match")
        file = SessionFile(
            json.loads(metadata["model"]),
            json.loads(metadata["weights_id"]),
            json.loads(metadata["prompt_tokens"]),
            msgspec.json.decode(metadata["sampling"], type=SamplingParams),
            TokenIds(data),
        )
    except SessionFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise SessionFileError(f"its header can't be read: {error!r}") from error
    if not 0 < file.prompt_tokens <= len(file.token_ids):
        raise SessionFileError("it is damaged: its prompt is longer than its tokens")
    return file
