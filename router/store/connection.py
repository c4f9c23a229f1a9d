"""The interface through which records are read and written, whichever database holds them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class DatabaseError(OSError):
    """The database can't be reached, or refused a statement."""


class Cursor(Protocol):
    """The result of a statement. Columns of a row are read by name or by place."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Reads and writes records within a transaction. Statements are SQL that both databases accept."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor: ...
    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]], /) -> Any: ...


class Records(Protocol):
    """The interface of both databases."""

    @property
    def begun(self) -> bool:
        """Whether anything may have been stored so far."""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own and return its result; the transaction is undone if it raises."""

    def call(self, work: Callable[[Connection], T]) -> T:
        """As `run`, for a thread that may block."""

    def close(self) -> None:
        """Finish the work that was given, then close. A second call does nothing."""
