"""Pushes boards into a Grafana through its API: creates missing ones and updates those that differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException

from cluster.dashboards.board import Board, render

_TIMEOUT_S = 20.0


class PushError(RuntimeError):
    """Grafana did not take the boards; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of pushing a board. url: the board's address in Grafana."""

    title: str
    outcome: Literal["created", "updated", "unchanged"]
    url: str


def push(url: str, token: str, folder: str, datasource: str | None, boards: tuple[Board, ...]) -> Iterator[Pushed]:
    """Push each board into the folder, which is created if it is missing.

    datasource: name or uid of the Prometheus data source that the boards begin with; None for Grafana's default.
    PushError, before anything is changed, if the token or the data source does not work.
    """
    grafana = GrafanaApi.from_url(url, credential=token, timeout=_TIMEOUT_S)
    try:
        chosen = _source(grafana, datasource)
        folder_uid = _folder(grafana, folder)
        for board in boards:
            yield _push(grafana, url, render(board, chosen), folder_uid)
    except GrafanaException as error:
        raise PushError(f"--url: {url} answered {error.status_code}: {_told(error)}") from None
    except OSError as error:
        raise PushError(f"--url: {url} can't be reached: {error}") from None


def _source(grafana: Any, wanted: str | None) -> dict[str, str] | None:
    found = [source for source in grafana.datasource.list_datasources() if source["type"] == "prometheus"]
    if wanted is None:
        return None
    for source in found:
        if wanted in (source["name"], source["uid"]):
            return {"text": source["name"], "value": source["uid"]}
    known = ", ".join(source["name"] for source in found) or "none"
    raise PushError(f"--datasource: no Prometheus data source {wanted!r}; there are: {known}")


def _folder(grafana: Any, title: str) -> str:
    for folder in grafana.folder.get_all_folders():
        if folder["title"] == title:
            return str(folder["uid"])
    return str(grafana.folder.create_folder(title)["uid"])


def _push(grafana: Any, url: str, board: dict[str, Any], folder_uid: str) -> Pushed:
    there = _there(grafana, board["uid"])
    where = f"{url.rstrip('/')}/d/{board['uid']}"
    if there is not None and there["meta"].get("folderUid") == folder_uid and _holds(there["dashboard"], board):
        return Pushed(board["title"], "unchanged", where)
    grafana.dashboard.update_dashboard(
        {"dashboard": board, "folderUid": folder_uid, "overwrite": True, "message": "ling dashboards push"}
    )
    return Pushed(board["title"], "created" if there is None else "updated", where)


def _there(grafana: Any, uid: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = grafana.dashboard.get_dashboard(uid)
    except GrafanaClientError as error:
        if error.status_code == 404:
            return None
        raise
    return found


def _holds(theirs: Any, ours: Any) -> bool:
    """Whether Grafana's board has all that ours has. Grafana adds ids, versions and defaults."""
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(k in theirs and _holds(theirs[k], v) for k, v in ours.items())
    if isinstance(ours, list):
        return (
            isinstance(theirs, list)
            and len(theirs) == len(ours)
            and all(_holds(t, o) for t, o in zip(theirs, ours, strict=True))
        )
    return bool(theirs == ours)


def _told(error: GrafanaException) -> str:
    if error.status_code in (401, 403):
        return "the token may not do that; use the token of a service account with the role Editor"
    return str(error.message)
