"""Weights that a rank has loaded, as the same rank of another worker can take them: without the checkpoint's files."""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from workers.model.files import WeightError
from workers.model.loader import Read, Source, SourceTensor

_Answers = dict[str, tuple[str, tuple[int, ...] | None] | None]


class Recorded:
    """A source that notes what it was asked for, and what it answered."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._answers: _Answers = {}

    def find(self, name: str) -> SourceTensor | None:
        """What the source has under that name."""
        found = self._source.find(name)
        self._answers[name] = None if found is None else (found.dtype, found.shape)
        return found

    def catalogue(self) -> bytes:
        """The answers, for `Borrowed`."""
        return msgspec.msgpack.encode(self._answers)

    def missing(self, name: str) -> str:
        """Why `find` gives None."""
        return self._source.missing(name)

    def where(self, name: str) -> str:
        """The place of a tensor that is there."""
        return self._source.where(name)

    def fill(self, read: Read) -> int:
        """Carry out a read."""
        return self._source.fill(read)

    def order(self, read: Read) -> tuple[str, int]:
        """Reads in this order go straight through the source."""
        return self._source.order(read)

    def close(self) -> None:
        """Let go of files."""
        self._source.close()


class Borrowed:
    """What a lender's source answered, in place of the source; reads are filled by the link, in their own order."""

    def __init__(self, catalogue: bytes) -> None:
        self._answers: Mapping[str, tuple[str, tuple[int, ...] | None] | None] = msgspec.msgpack.decode(
            catalogue, type=_Answers
        )

    def find(self, name: str) -> SourceTensor | None:
        """What the lender found; WeightError where it did not ask, so runs another version."""
        if name not in self._answers:
            raise WeightError(f"the lender was not asked for {name}: it runs another version")
        found = self._answers[name]
        return None if found is None else SourceTensor(*found)

    def missing(self, name: str) -> str:
        """Why `find` gives None."""
        return f"{name} is not among the lender's weights"

    def where(self, name: str) -> str:
        """The place of all."""
        return "the lender's weights"

    def fill(self, read: Read) -> int:
        """Never called."""
        raise NotImplementedError(read.name)

    def order(self, read: Read) -> tuple[str, int]:
        """As they were asked for."""
        return "", 0

    def close(self) -> None:
        """Nothing is open."""


def plan_of(reads: Sequence[Read]) -> str:
    """A digest of what is read into what, in order: equal plans have tensors of equal bytes and meaning."""
    digest = hashlib.sha256()
    for read in reads:
        digest.update(f"{read.name} {read.spans} {tuple(read.out.shape)} {read.out.dtype}\n".encode())
    return digest.hexdigest()
