"""`ling drain`: ends a worker, whose answers continue at other workers."""

import time
from typing import Annotated
from urllib.parse import quote

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from cluster.remote import RemoteError, ask, connected

_POLL_S = 0.5
_PATIENCE_S = 120.0


def drain_command(
    worker: Annotated[str, typer.Argument(help="The worker's id, as `ling status` shows it.")],
    url: Annotated[str, typer.Option(help="Where the cluster listens.", envvar="LING_URL")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(help="An operator's, where there are keys.", envvar="LING_API_KEY", show_default=False)
    ] = None,
) -> None:
    """End a worker: its answers continue at other workers of its pool. Ray Serve starts another in its place."""
    console = Console(stderr=True)
    try:
        with connected(url, api_key) as client:
            ask(client, "POST", f"/v1/workers/{quote(worker, safe='')}/drain")
            began = time.monotonic()
            while _is_there(client, worker):
                if time.monotonic() - began > _PATIENCE_S:
                    raise RemoteError(f"{worker} has not ended within {_PATIENCE_S:g} s: see its log")
                time.sleep(_POLL_S)
    except RemoteError as error:
        console.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    Console().print(f"{worker} has ended", highlight=False)


def _is_there(client: httpx.Client, worker: str) -> bool:
    pools = ask(client, "GET", "/status")["pools"]
    return any(one["id"] == worker for pool in pools.values() for one in pool["workers"])
