"""Token ids as packed bytes, four a token, in which a prompt is kept, sent and hashed.

100,000 ids as Python integers take milliseconds to make, to check, to hash and to send; as 400 kB of bytes almost none.
"""

import array
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

_WIDTH = 4


@dataclass(frozen=True, slots=True)
class TokenIds(Sequence[int]):
    """A sequence of token ids. packed: little-endian int32."""

    packed: bytes

    @classmethod
    def of(cls, token_ids: Iterable[int]) -> "TokenIds":
        """Of Python integers; OverflowError for one beyond 32 bits."""
        return cls(array.array("i", token_ids).tobytes())

    def __len__(self) -> int:
        return len(self.packed) // _WIDTH

    def __iter__(self) -> Iterator[int]:
        return iter(self.array())

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> "array.array[int]": ...
    def __getitem__(self, at: int | slice) -> "int | array.array[int]":
        return self.array()[at]

    def array(self) -> "array.array[int]":
        """A copy that can be indexed, and has `min`, `max` and sums at the speed of C."""
        out = array.array("i")
        out.frombytes(self.packed)
        return out

    def hash(self) -> str:
        """Hash of the ids in order, 32 hex digits: BLAKE2b over the packed bytes."""
        return hashlib.blake2b(self.packed, digest_size=16).hexdigest()

    def hashes(self, positions: Iterable[int]) -> tuple[str, ...]:
        """`hash` of the first p ids for each p of `positions`, ascending, in one pass."""
        running = hashlib.blake2b(digest_size=16)
        out: list[str] = []
        view, at = memoryview(self.packed), 0
        for position in positions:
            running.update(view[at : position * _WIDTH])
            at = position * _WIDTH
            out.append(running.copy().hexdigest())
        return tuple(out)
