"""Shows the progress of reading or writing a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

# Arguments: the stage, the bytes converted so far, and the total bytes.
Tell = Callable[[str, int, int], None]


def silent(doing: str, done: int, total: int) -> None:
    """Show no progress."""


@contextmanager
def bar() -> Iterator[Tell]:
    """Show a bar on a terminal, or lines in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(doing: str, done: int, total: int) -> None:
            if doing not in tasks:
                tasks[doing] = progress.add_task(doing)
            progress.update(tasks[doing], completed=done, total=total)

        yield tell


def _lines(console: Console) -> Tell:
    """Show a line for each twentieth of the work, for a log."""
    told: dict[str, int] = {}

    def tell(doing: str, done: int, total: int) -> None:
        if (reached := 20 * done // max(1, total)) > told.get(doing, 0):
            told[doing] = reached
            console.print(f"{doing}: {5 * reached} % of {decimal(total)}", highlight=False)

    return tell
