"""A fetch in the terminal: a bar, or lines in a log, and an end at Ctrl-C."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from cluster.fetch.fetch import Fetched
from cluster.fetch.watch import Tell
from wire.progress import Progress

# The exit code that a shell reports after Ctrl-C.
_INTERRUPTED = 130
_LINE_EVERY_S = 5.0


def fetch_shown(fetch: Callable[[Tell], Fetched], console: Console) -> Fetched:
    """Run a fetch and show its progress. Ctrl-C ends this process at once; the next fetch continues from there."""
    done: Future[Fetched] = Future()

    def run(tell: Tell) -> None:
        try:
            done.set_result(fetch(tell))
        except BaseException as error:
            done.set_exception(error)

    with _bars(console) if console.is_terminal else _lines(console) as tell:
        threading.Thread(target=run, args=(tell,), name="fetch", daemon=True).start()
        try:
            return done.result()
        except KeyboardInterrupt:
            # Downloads can't be cancelled from here; complete files, and the parts of others that stores sent, are
            # kept.
            os._exit(_INTERRUPTED)


@contextmanager
def _bars(console: Console) -> Iterator[Tell]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage)
            files = f" ({progress.files_done}/{progress.files} files)"
            bars.update(
                tasks[progress.stage],
                description=progress.stage + files,
                completed=progress.done,
                total=progress.total,
            )

        yield tell


@contextmanager
def _lines(console: Console) -> Iterator[Tell]:
    """Show the first and last line of each stage, and one every few seconds."""
    due: dict[str, float] = {}

    def tell(progress: Progress) -> None:
        now = time.monotonic()
        if now >= due.get(progress.stage, 0.0) or progress.done == progress.total:
            due[progress.stage] = now + _LINE_EVERY_S
            console.print(str(progress), highlight=False, soft_wrap=True)

    yield tell
