"""`ling convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cluster.convert.errors import ConvertError
from cluster.convert.progress import bar
from cluster.terminal import console_for_tables
from workers.model.config import ModelConfigError
from workers.model.files import WeightError

if TYPE_CHECKING:
    from cluster.convert.to_format import Report


def convert_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Checkpoint folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to make.")],
    to: Annotated[
        Literal["fp8", "int4"] | None,
        typer.Option(help="Quantize: fp8 in blocks of 128x128, or the routed experts in int4.", show_default=False),
    ] = None,
    shard_for: Annotated[
        str | None,
        typer.Option(metavar="tp=N", help="Write each of N ranks' weights into one file.", show_default=False),
    ] = None,
) -> None:
    """Copy a checkpoint into another format, or pre-sharded for a number of ranks."""
    if (to is None) == (shard_for is None):
        raise typer.BadParameter("give either --to or --shard-for")
    tp = None if shard_for is None else _tp(shard_for)
    source, destination = source.expanduser().resolve(), destination.expanduser().resolve()
    # Imported here, because they import torch, for which every other `ling` command would wait.
    from cluster.convert.to_format import to_format  # noqa: PLC0415
    from cluster.convert.to_ranks import to_ranks  # noqa: PLC0415

    try:
        with bar() as progress:
            if to is not None:
                report = to_format(to, source, destination, progress)
            elif tp is not None:
                written = to_ranks(tp, source, destination, progress)
    except (ConvertError, ModelConfigError, WeightError, OSError) as error:
        Console(stderr=True).print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    console = console_for_tables()
    if to is not None:
        console.print(_table(report))
        console.print(f"{decimal(report.before)} became {decimal(report.after)} in {destination}")
    else:
        console.print(f"{decimal(written)} for {tp} ranks in {destination}; serve it with --tp {tp}")


def _tp(text: str) -> int:
    key, _, value = text.partition("=")
    if key != "tp" or not value.isdecimal() or int(value) < 1:
        raise typer.BadParameter(f"--shard-for {text}: must read tp=N")
    return int(value)


def _table(report: "Report") -> Table:
    table = Table("layer", "matrices", "relative RMS error", "worst", "", box=None, header_style="dim", padding=(0, 2))
    for layer, error in sorted(report.layers.items()):
        worst = error.worst.removeprefix(f"model.layers.{layer}.")
        table.add_row(
            str(layer), f"{error.matrices:,}", f"{error.relative_rms:.4%}", f"{error.worst_rms:.4%}", f"[dim]{worst}[/]"
        )
    return table
