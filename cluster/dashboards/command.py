"""`ling dashboards`."""

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

dashboards = typer.Typer(no_args_is_help=True, help="The cluster's boards in Grafana.")


@dashboards.callback()
def _commands() -> None:
    """Make `dashboards` a group of commands, though it has only one."""


@dashboards.command("push")
def push_command(
    url: Annotated[str, typer.Option(help="Grafana's URL, e.g. https://grafana.example.")],
    token_env: Annotated[
        str, typer.Option(help="Environment variable that holds a Grafana service account's token.")
    ] = "GRAFANA_TOKEN",
    folder: Annotated[str, typer.Option(help="Folder for the boards, created if it is missing.")] = "Ling",
    datasource: Annotated[
        str | None,
        typer.Option(help="Name or uid of the Prometheus data source. Default: Grafana's.", show_default=False),
    ] = None,
) -> None:
    """Create or update the boards in a Grafana; boards that have not changed stay as they are."""
    console, errors = Console(), Console(stderr=True)
    # Grafana's client takes as long to load as all the rest of the command line.
    try:
        from cluster.dashboards.push import PushError, push  # noqa: PLC0415
    except ModuleNotFoundError as error:
        hint = f"{error.name} is missing; in a checkout: pip install -e '.[dashboards]'"
        errors.print(f"[red]error[/] {escape(hint)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    from cluster.dashboards.write import BOARDS  # noqa: PLC0415

    try:
        token = os.environ.get(token_env)
        if not token:
            raise PushError(f"--token-env: {token_env} is not set; put a service account's token there")
        for pushed in push(url, token, folder, datasource, BOARDS):
            console.print(f"{pushed.outcome:<9} {pushed.title}  {pushed.url}", soft_wrap=True, highlight=False)
    except PushError as error:
        errors.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
