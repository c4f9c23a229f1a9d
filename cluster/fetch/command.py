"""`ling fetch`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cluster.config import ConfigError
from cluster.fetch.errors import FetchError
from cluster.fetch.fetch import Origin
from cluster.fetch.location import remote
from cluster.fetch.terminal import fetch_shown


def fetch_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="ORGANIZATION/NAME[@REVISION] of a hub; s3://, gs://, https:// prefix."),
    ],
    cache: Annotated[
        Path | None, typer.Option(help="Folder to fetch into. Default: the user's cache.", show_default=False)
    ] = None,
) -> None:
    """Fetch a checkpoint into this host's cache, as `ling serve` would, and print its folder."""
    console = Console(stderr=True)
    try:
        place = remote(model)
        if place is None:
            raise ConfigError(
                f"model: {model} is neither a repository nor a prefix of a store, so there is nothing to fetch"
            )
        found = fetch_shown(Origin(place, cache).weights, console)
    except (ConfigError, FetchError) as error:
        console.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    typer.echo(found.folder)
