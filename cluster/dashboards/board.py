"""A board as plain data, and the JSON that Grafana reads."""

from dataclasses import dataclass, field
from typing import Any, Literal

# Grafana's names. percentunit: a ratio, 1 for all.
Unit = Literal["s", "percentunit", "Bps", "reqps", "short", "none"]
_WIDTH = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are called (Grafana's `{{label}}`)."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot. text: what it says and what is normal. most: where its axis ends, if that is known."""

    title: str
    unit: Unit
    text: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    width: int = 8
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. uid: what it is found by again, for good."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...] = field(default=())

    @property
    def panels(self) -> list[Panel]:
        """All of them."""
        return [panel for row in self.rows for panel in row.panels]


def render(board: Board, datasource: dict[str, str] | None = None) -> dict[str, Any]:
    """The dashboard's JSON. datasource: text and value of the chosen one; None for Grafana's default."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in board.rows:
        panels.append(_row(len(panels) + 1, row.title, y))
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + _HEIGHT
            panels.append(_panel(len(panels) + 1, panel, x, y))
            x += panel.width
        y += _HEIGHT
    source: dict[str, Any] = {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0,
    }  # fmt: skip
    if datasource is not None:
        source["current"] = {**datasource, "selected": True}
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.text,
        "tags": ["ling"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Ling", "tags": ["ling"], "asDropdown": True, "keepTime": True}],
        "panels": panels,
    }


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    at = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": at, "panels": []}


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        filled = 30 if panel.stacked else 0
        defaults["custom"] = {
            "fillOpacity": filled,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for i, query in enumerate(panel.queries)
        ],
    }
