"""How far reading or writing a checkpoint has come."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """What takes the bytes done and those in all: a bar on a terminal, lines in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(console: Console) -> Callable[[int, int], None]:
    """For a log: a line each twentieth of the way."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if (reached := 20 * done // max(1, total)) > told:
            told = reached
            console.print(f"{5 * reached} % of {decimal(total)}", highlight=False)

    return tell
