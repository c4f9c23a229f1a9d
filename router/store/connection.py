"""What records are read and written by, whichever database holds them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class DatabaseError(OSError):
    """The database can't be reached, or can't do what it was asked."""


class Cursor(Protocol):
    """What came of a statement. Rows are read by their columns' names or places."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What records are read and written by, within a transaction. Statements are SQL that both databases take."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> Any: ...


class Records(Protocol):
    """Either database."""

    @property
    def begun(self) -> bool:
        """Whether anything was ever kept there."""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work`'s result, in a transaction of its own that is kept when this returns, and undone if it raises."""

    def call(self, work: Callable[[Connection], T]) -> T:
        """The same, for a thread that may block."""

    def close(self) -> None:
        """Finish what was given, then close. A second call does nothing."""
