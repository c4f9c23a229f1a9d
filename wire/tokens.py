"""Token ids as packed bytes, four per token: prompts are stored and sent in this form.

100,000 ids as Python integers take milliseconds to create, check and send; as 400 kB of bytes they take almost no time.
"""

import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

WIDTH = 4


@dataclass(frozen=True, slots=True)
class TokenIds(Sequence[int]):
    """An immutable sequence of token ids. packed: their bytes, int32 little-endian."""

    packed: bytes

    @classmethod
    def of(cls, token_ids: Iterable[int]) -> "TokenIds":
        """Pack Python integers; OverflowError for one beyond 32 bits."""
        return cls(array.array("i", token_ids).tobytes())

    def __len__(self) -> int:
        return len(self.packed) // WIDTH

    def __iter__(self) -> Iterator[int]:
        return iter(self.array())

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> "array.array[int]": ...
    def __getitem__(self, at: int | slice) -> "int | array.array[int]":
        return self.array()[at]

    def first(self, count: int) -> "TokenIds":
        """The first `count` ids."""
        return TokenIds(self.packed[: WIDTH * count])

    def array(self) -> "array.array[int]":
        """A copy as an array, for fast indexing, `min`, `max` and `sum`."""
        out = array.array("i")
        out.frombytes(self.packed)
        return out
