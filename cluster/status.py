"""`/status` as text for the terminal."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from wire.progress import Progress

# A start without progress for longer than this is marked.
_STILL_S = 30.0
_COLUMNS = ("worker", "state", "pid", "on", "queued", "running", "moving", "free\nslots", "free\npages")


def render(status: dict[str, Any]) -> Group:
    """A headline, and a table of pools, workers and ranks."""
    ready, router = status["ready"], status["router"]
    headline = Text.assemble(
        (status["model"], "bold"),
        ("  ready" if ready else f"  not ready: {status['reason']}", "green" if ready else "red"),
        f"   {router['name']} (process {router['pid']}): {router['in_flight']} of {router['max_queue']} in flight",
    )
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, no_wrap=True)
    for role, pool in status["pools"].items():
        for worker in pool["workers"]:
            _add(table, worker)
        for worker in pool["starting"]:
            table.add_row(worker["id"], Text(_way(worker), "yellow"))
        for _ in range(pool["configured"] - len(pool["workers"]) - len(pool["starting"])):
            table.add_row(role, Text("missing", "red"))
    return Group(headline, table)


def _add(table: Table, worker: dict[str, Any]) -> None:
    state = worker["state"]
    color = "green" if state == "live" else "yellow"
    if "ranks" not in worker:
        table.add_row(worker["id"], Text(f"{state}: {worker['problem']}", color))
        return
    figures = [worker[name] for name in ("queued", "running", "transferring")]
    room = [f"{worker[f'free_{kind}']}/{worker[kind]}" for kind in ("slots", "pages")]
    table.add_row(worker["id"], Text(state, color), str(worker["pid"]), worker["node"], *map(str, figures), *room)
    if worker["unreachable"]:
        table.add_row("  can't reach", Text(", ".join(worker["unreachable"]), "yellow"))
    for rank in worker["ranks"]:
        table.add_row(f"  rank {rank['rank']}", "", str(rank["pid"]), f"{rank['node']} {rank['device']}")


def _way(worker: dict[str, Any]) -> str:
    """The progress of a worker's start."""
    files, size = (worker["done_files"], worker["total_files"]), (worker["done_bytes"], worker["total_bytes"])
    said = str(Progress(worker["stage"], *size, *files, worker["bytes_per_s"]))
    return said if worker["still_s"] < _STILL_S else f"{said}, still for {worker['still_s']:.0f} s"
