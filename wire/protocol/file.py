"""The messages of a connection over which one file with a snapshot is saved or loaded."""

from wire.protocol.data import Data
from wire.protocol.kept import Mark
from wire.tokens import TokenIds


class SaveFile(Data, frozen=True):
    """Send a file of the first of `marks` that the worker keeps, with the states of the later marks, its prefixes.

    token_ids: the token ids of the request that is saved. turn: its `wire.snapshot_file.Turn`, as JSON.
    """

    marks: tuple[Mark, ...]
    token_ids: TokenIds
    turn: bytes


class LoadFile(Data, frozen=True):
    """Keep the snapshot of the file that follows in `FilePart`s, for requests of this scope."""

    scope: str


class FilePart(Data, frozen=True):
    """The next bytes of a file; b"" ends the file."""

    data: bytes


class FileKept(Data, frozen=True):
    """The file's snapshot is on the device."""


class FileRefused(Data, frozen=True):
    """The worker has no such snapshot, or can't keep the file. reason: why."""

    reason: str
