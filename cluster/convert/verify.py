"""`ling verify`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.convert.progress import bar
from workers.model.config import LingConfig, ModelConfigError
from workers.model.files import WeightError


def verify_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder, or a pre-sharded copy.")],
) -> None:
    """Read a whole checkpoint, and report missing, damaged or impossible values by file and tensor."""
    folder = folder.expanduser().resolve()
    # Imported here, because they import torch, for which every other `ling` command would wait.
    from workers.model.load_plan import check  # noqa: PLC0415
    from workers.model.sharded import made_for  # noqa: PLC0415
    from workers.model.verify import verify  # noqa: PLC0415

    try:
        check(folder, LingConfig.load(folder, {}), made_for(folder))
        with bar() as told:
            found = verify(folder, progress=lambda so_far: told("verifying", so_far.done, so_far.total))
    except (ModelConfigError, WeightError) as error:
        Console(stderr=True).print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    Console().print(str(found), soft_wrap=True, highlight=False)
