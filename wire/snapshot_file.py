"""The file format of snapshots, for a worker's disk tier and for saving to another cluster. No HTTP, no torch.

A file is in safetensors format. Its metadata is a `SnapshotHead`, each field as JSON. Its tensors are `token_ids`
(int32) and, for each rank r of `ranks`, `rank<r>.rows.<i>` (that rank's shard of the latents of `parts[i]` tokens) and
`rank<r>.state.<i>.<n>` (its state after part i, for each i of `states`; `StateCodec` packs a state into several
tensors, numbered n). The metadata's `crc32.<tensor>` is the CRC-32 of the tensor's bytes, in hex. States come last, so
that a file of the disk tier can be cut off before them and still holds its latents.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from wire.digest import digests_at
from wire.protocol import SamplingParams
from wire.tokens import WIDTH, TokenIds

FORMAT = "ling-snapshot/2"
TOKEN_IDS = "token_ids"
CRC = "crc32."
_LENGTH = struct.Struct("<Q")
_MOST_HEAD = 16 * 1024 * 1024
_PIECE = 1024 * 1024
# What reading a header may raise that is not as it should be.
_FOREIGN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, msgspec.MsgspecError)


class SnapshotFileError(ValueError):
    """A file is not a whole, undamaged snapshot; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The request whose tokens a snapshot holds.

    model: its name for clients. prompt_tokens: number of the first tokens that are its prompt; the rest were generated.
    error: the error with which it failed; "" if it ended well.
    """

    model: str
    prompt_tokens: int
    sampling: SamplingParams
    error: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """The description of a snapshot in its file.

    weights_id, layout: of the worker that made it, as in `WorkerInfo`; a worker that differs in one of them can't
    continue it. state_dtype: dtype in which states are stored. position: number of tokens after which its last state
    stands; 0 if it holds only token ids. start: number of the first of these tokens whose latents and ids are not in
    this file, but in the one named `before` and in those that it continues. token_hash: `wire.digest` of this file's
    ids up to `position` without scope, in hex. scope: only prompts of the same scope may use it. parts: number of
    tokens in each part of the latents; they add up to `position - start`. states: indices of the parts after which a
    state is stored. split: number of ranks over which heads and latents are split; ranks: the ranks whose tensors are
    in this file. turn: the saved request; None in a disk tier.
    """

    weights_id: str
    layout: str
    state_dtype: str
    position: int
    token_hash: str
    scope: str
    parts: tuple[int, ...]
    states: tuple[int, ...]
    split: int
    ranks: tuple[int, ...]
    turn: Turn | None = None
    start: int = 0
    before: str = ""
    format: str = FORMAT

    def metadata(self) -> dict[str, str]:
        """The fields as safetensors' metadata: each name with its value in JSON."""
        return {f.name: msgspec.json.encode(getattr(self, f.name)).decode() for f in fields(self)}

    @property
    def positions(self) -> tuple[int, ...]:
        """The number of tokens before each stored state."""
        ends = list(accumulate(self.parts))
        return tuple(self.start + ends[part] for part in self.states)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file. dtype: as safetensors names it. begin, end: offsets of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A file's content without the bytes of states and latents.

    bytes: the size that the whole file should have. sums: each tensor's CRC-32, in hex. stateless: its size once its
    states are cut off; cut: whether they are.
    """

    head: SnapshotHead
    token_ids: TokenIds
    bytes: int
    sums: Mapping[str, str]
    tensors: Mapping[str, Entry]
    stateless: int
    cut: bool = False


def token_hash(token_ids: TokenIds, position: int) -> str:
    """`SnapshotHead.token_hash` of the first `position` ids."""
    return digests_at(token_ids, [position])[0].hex()


def pack(head: SnapshotHead, tensors: Mapping[str, tuple[str, Sequence[int], int, str]], token_ids: TokenIds) -> bytes:
    """The beginning of a file: header and token ids. The caller must write the tensors' bytes after it, in their order.

    tensors: by name, the dtype, shape, size in bytes and CRC-32 (hex) of each.
    """
    ids = token_ids.packed
    all_of = {TOKEN_IDS: ("I32", [len(token_ids)], len(ids), f"{zlib.crc32(ids):08x}"), **tensors}
    metadata = head.metadata() | {CRC + name: crc for name, (_, _, _, crc) in all_of.items()}
    described: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, size, _) in all_of.items():
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(described).encode()
    encoded += b" " * (-len(encoded) % 8)
    return _LENGTH.pack(len(encoded)) + encoded + ids


def join(files: Sequence[Sequence[BinaryIO]], turn: Turn, token_ids: TokenIds) -> Iterator[bytes]:
    """Join the files that the ranks have written into one; yields its bytes piece by piece.

    files: for each rank those that together hold its part, each continued by the next. States are taken from the last
    one only. token_ids: the request's, which replace those in the ranks' files. SnapshotFileError if a rank's file is
    cut short, or its header or token ids are damaged; the other checksums are not compared.
    """
    lines = [[read(file) for file in line] for line in files]
    heads = [content.head for content in lines[0]]
    before = list(accumulate((len(head.parts) for head in heads), initial=0))
    ranks = tuple(rank for line in lines for rank in line[-1].head.ranks)
    head = replace(
        heads[-1], start=0, before="", token_hash=token_hash(token_ids, heads[-1].position), scope="", ranks=ranks,
        turn=turn, parts=tuple(part for one in heads for part in one.parts),
        states=tuple(before[-2] + part for part in heads[-1].states),
    )  # fmt: skip
    rows: dict[str, tuple[BinaryIO, Entry, str]] = {}
    states: dict[str, tuple[BinaryIO, Entry, str]] = {}
    for opened, line in zip(files, lines, strict=True):
        for file, content, first in zip(opened, line, before, strict=False):
            for name, entry in content.tensors.items():
                if name == TOKEN_IDS or (is_state(name) and content is not line[-1]):
                    continue
                rank, kind, part, *rest = name.split(".")
                renamed = ".".join((rank, kind, str(first + int(part)), *rest))
                (states if is_state(name) else rows)[renamed] = file, entry, content.sums[name]
    tensors = rows | states
    described = {name: (e.dtype, e.shape, e.end - e.begin, crc) for name, (_, e, crc) in tensors.items()}
    yield pack(head, described, token_ids)
    for file, entry, _ in tensors.values():
        file.seek(entry.begin)
        left = entry.end - entry.begin
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise SnapshotFileError("a rank's part is cut short")
            left -= len(piece)
            yield piece


def read_head(path: Path, *, may_be_cut: bool = False) -> SnapshotFile:
    """Read a file's header and token ids; SnapshotFileError if they are damaged or the file is cut short.

    may_be_cut: its states may have been cut off.
    """
    try:
        with path.open("rb") as file:
            content = read(file)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SnapshotFileError(f"{path.name} can't be read: {error.strerror}") from error
    except SnapshotFileError as error:
        raise SnapshotFileError(f"{path.name}: {error}") from error
    if may_be_cut and size == content.stateless < content.bytes:
        return replace(content, cut=True)
    if content.bytes != size:
        raise SnapshotFileError(f"{path.name}: it is cut short: it has {size} bytes of {content.bytes}")
    return content


def needed(begun: bytes | bytearray) -> int:
    """How many of a file's first bytes `read` needs. Call it again with as many bytes until it asks for no more.

    begun: the file's first bytes so far. SnapshotFileError if no snapshot file begins with them.
    """
    if len(begun) < _LENGTH.size:
        return _LENGTH.size
    (length,) = _LENGTH.unpack(begun[: _LENGTH.size])
    if length > _MOST_HEAD:
        raise SnapshotFileError("it is no safetensors file")
    head = _LENGTH.size + int(length)
    if len(begun) < head:
        return head
    try:
        return head + int(json.loads(begun[_LENGTH.size : head])[TOKEN_IDS]["data_offsets"][1])
    except _FOREIGN as error:
        raise SnapshotFileError(f"its header can't be read: {error!r}") from error


def read(file: BinaryIO) -> SnapshotFile:
    """As `read_head`, for an open file or its beginning. The caller must compare the file's size with `bytes`."""
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise SnapshotFileError("it is cut short: not even its header's length is there")
    (length,) = _LENGTH.unpack(start)
    if length > _MOST_HEAD:
        raise SnapshotFileError("it is no safetensors file")
    encoded = file.read(length)
    if len(encoded) < length:
        raise SnapshotFileError("it is cut short, or no safetensors file")
    begin = _LENGTH.size + length
    try:
        described: dict[str, Any] = json.loads(encoded)
        metadata: dict[str, str] = described.pop("__metadata__", {})
        head = _head(metadata)
        tensors = {name: _entry(entry, begin) for name, entry in described.items()}
        ids = tensors[TOKEN_IDS]
        # Whatever the header says, no more is read than there is.
        there = file.seek(0, io.SEEK_END) - ids.begin
        file.seek(ids.begin)
        token_ids = TokenIds(file.read(min(ids.end - ids.begin, max(there, 0))))
    except SnapshotFileError:
        raise
    except _FOREIGN as error:
        raise SnapshotFileError(f"its header can't be read: {error!r}") from error
    if len(token_ids.packed) < ids.end - ids.begin:
        raise SnapshotFileError("it is cut short within its token ids")
    if len(token_ids.packed) % WIDTH:
        raise SnapshotFileError(f"its token ids have {len(token_ids.packed)} bytes, which are no whole ids")
    sums = {name.removeprefix(CRC): crc for name, crc in metadata.items() if name.startswith(CRC)}
    if f"{zlib.crc32(token_ids.packed):08x}" != sums.get(TOKEN_IDS):
        raise SnapshotFileError("it is damaged: the checksum of its token ids does not match")
    own = head.position - head.start
    if not _sound(head, len(token_ids), tensors) or head.token_hash != token_hash(token_ids, own):
        raise SnapshotFileError("it is damaged: its header contradicts itself")
    ends = max(entry.end for entry in tensors.values())
    stateless = max(entry.end for name, entry in tensors.items() if not is_state(name))
    return SnapshotFile(head, token_ids, ends, sums, tensors, stateless)


def is_state(tensor: str) -> bool:
    """Whether a tensor of this name is one of a state's."""
    return ".state." in tensor


def check(path: Path) -> SnapshotFile:
    """As `read_head`, and check all tensors' checksums; SnapshotFileError names a tensor that does not match."""
    content = read_head(path)
    with path.open("rb") as file:
        for name, entry in content.tensors.items():
            file.seek(entry.begin)
            crc, left = 0, entry.end - entry.begin
            while left and (piece := file.read(min(left, _PIECE))):
                crc, left = zlib.crc32(piece, crc), left - len(piece)
            if f"{crc:08x}" != content.sums.get(name):
                raise SnapshotFileError(f"{path.name}: it is damaged: the checksum of {name} does not match")
    return content


def without_state(weights_id: str, layout: str, turn: Turn, token_ids: TokenIds) -> bytes:
    """The file of a request whose snapshot no worker keeps any more: only its token ids and its turn."""
    head = SnapshotHead(weights_id, layout, "float32", 0, token_hash(token_ids, 0), "", (), (), 1, (), turn)
    return pack(head, {}, token_ids)


def unpack(content: bytes) -> SnapshotFile:
    """As `read_head`, for a file's whole content."""
    found = read(io.BytesIO(content))
    if found.bytes != len(content):
        raise SnapshotFileError(f"it is cut short: it has {len(content)} bytes of {found.bytes}")
    return found


def _entry(described: Mapping[str, Any], begin: int) -> Entry:
    first, last = described["data_offsets"]
    if not 0 <= first <= last:
        raise SnapshotFileError("its header names bytes that can't be")
    return Entry(str(described["dtype"]), tuple(map(int, described["shape"])), begin + first, begin + last)


def _head(metadata: Mapping[str, str]) -> SnapshotHead:
    if (found := json.loads(metadata.get("format", "null"))) != FORMAT:
        raise SnapshotFileError(f"its format is {found!r}; this version reads {FORMAT!r}")
    known = {f.name: msgspec.Raw(metadata[f.name].encode()) for f in fields(SnapshotHead) if f.name in metadata}
    return msgspec.json.decode(msgspec.json.encode(known), type=SnapshotHead)


def _sound(head: SnapshotHead, tokens: int, tensors: Mapping[str, Entry]) -> bool:
    """Whether a header's fields do not contradict each other. tokens: number of token ids in the file."""
    ranks, parts = head.ranks, len(head.parts)
    whole = head.position - head.start == sum(head.parts) <= tokens and all(part > 0 for part in head.parts)
    lined = head.start > 0 if head.before else head.start == 0
    stated = list(head.states) == sorted(set(head.states)) and (head.states[-1:] == (parts - 1,) if parts else True)
    ranked = head.split > 0 and all(0 <= rank < head.split for rank in ranks) and bool(ranks) == bool(parts)
    turned = head.turn is None or 0 < head.turn.prompt_tokens <= tokens
    named = all(f"rank{rank}.rows.{part}" in tensors for rank in ranks for part in range(parts))
    return whole and lined and stated and ranked and turned and named and all(0 <= part < parts for part in head.states)
