"""Lets a rank take the weights that the same rank of another worker has loaded, without the checkpoint's files."""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from workers.model.files import WeightError
from workers.model.loader import Read, Source, SourceTensor

_Answers = dict[str, tuple[str, tuple[int, ...] | None] | None]


class Recorded:
    """A source that records what it was asked for and what it answered."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._answers: _Answers = {}

    def find(self, name: str) -> SourceTensor | None:
        """The source's tensor with this name; None if there is none."""
        found = self._source.find(name)
        self._answers[name] = None if found is None else (found.dtype, found.shape)
        return found

    def catalogue(self) -> bytes:
        """The recorded answers, for `Borrowed`."""
        return msgspec.msgpack.encode(self._answers)

    def missing(self, name: str) -> str:
        """A message that says why `find` returns None."""
        return self._source.missing(name)

    def where(self, name: str) -> str:
        """The place of an existing tensor, for messages."""
        return self._source.where(name)

    def fill(self, read: Read) -> int:
        """Do a read."""
        return self._source.fill(read)

    def order(self, read: Read) -> tuple[str, int]:
        """Order reads so that they go through the source sequentially."""
        return self._source.order(read)

    def close(self) -> None:
        """Close files."""
        self._source.close()


class Borrowed:
    """A source that repeats the answers of a lender's source. The link does the reads, in their given order."""

    def __init__(self, catalogue: bytes) -> None:
        self._answers: Mapping[str, tuple[str, tuple[int, ...] | None] | None] = msgspec.msgpack.decode(
            catalogue, type=_Answers
        )

    def find(self, name: str) -> SourceTensor | None:
        """The lender's answer; WeightError if there is none, because the lender runs another version."""
        if name not in self._answers:
            raise WeightError(f"the lender was not asked for {name}: it runs another version")
        found = self._answers[name]
        return None if found is None else SourceTensor(*found)

    def missing(self, name: str) -> str:
        """A message that says why `find` returns None."""
        return f"{name} is not among the lender's weights"

    def where(self, name: str) -> str:
        """The place of all tensors, for messages."""
        return "the lender's weights"

    def fill(self, read: Read) -> int:
        """Not used: the link does the reads."""
        raise NotImplementedError(read.name)

    def order(self, read: Read) -> tuple[str, int]:
        """Keep the given order."""
        return "", 0

    def close(self) -> None:
        """Do nothing, because nothing is open."""


def plan_of(reads: Sequence[Read]) -> str:
    """A digest of all reads in order. Workers with equal digests have tensors of equal bytes and meaning."""
    digest = hashlib.sha256()
    for read in reads:
        digest.update(f"{read.name} {read.spans} {tuple(read.out.shape)} {read.out.dtype}\n".encode())
    return digest.hexdigest()
