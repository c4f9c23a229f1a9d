"""Reserves the terminal for the command's own output."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

_PIPE_WIDTH = 160


def console_for_tables() -> Console:
    """Standard output; a file or pipe gets lines long enough for tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


@contextmanager
def own_console(log: Path) -> Iterator[Console]:
    """Inside the block, only what is printed on the console reaches standard output; all other output goes to `log`.

    Ray and its threads write to the driver's standard output and error on their own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        with os.fdopen(os.dup(1), "w") as terminal:
            width = None if terminal.isatty() else _PIPE_WIDTH
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            yield Console(file=terminal, width=width)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, number)
            os.close(saved)
        os.close(sink)
