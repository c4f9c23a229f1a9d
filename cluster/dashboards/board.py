"""A board as plain data, and the JSON that Grafana reads."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.dashboards.promql import PREFIX, VARIABLES
from wire.metrics import table as t

# Grafana's names. percentunit: a ratio, 1 for all.
Unit = Literal["s", "percentunit", "Bps", "reqps", "short", "none", "bytes", "celsius", "watt"]
_WIDTH = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and the legend of its series in Grafana's form, `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot, or with kind "stat" a tile that shows the latest value.

    text: what it shows and what is normal. width, height: in Grafana's grid, whose rows are 24 wide. most: the upper
    end of its axis; None lets Grafana choose it. warn, bad: the values at which a tile turns yellow and red; if `bad`
    is below `warn`, lower values are worse.
    """

    title: str
    unit: Unit
    text: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    stacked: bool = False
    width: int = 8
    most: float | None = None
    warn: float | None = None
    bad: float | None = None
    height: int = _HEIGHT


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. uid: its permanent id.

    scope: a metric with all the labels that the board's variables choose; "" for a board without variables.
    """

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...] = field(default=())
    scope: str = f"{PREFIX}{t.RUNNING.name}"

    @property
    def panels(self) -> list[Panel]:
        """All panels of all rows."""
        return [panel for row in self.rows for panel in row.panels]


def render(board: Board, datasource: dict[str, str] | None = None) -> dict[str, Any]:
    """The dashboard's JSON. datasource: `text` (name) and `value` (uid) of the data source; None for Grafana's."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in board.rows:
        panels.append(_row(len(panels) + 1, row.title, y))
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + row.panels[0].height
            panels.append(_panel(len(panels) + 1, panel, x, y))
            x += panel.width
        y += row.panels[-1].height
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
        "templating": {"list": [source, *(_variables(board.scope) if board.scope else [])]},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Ling", "tags": ["ling"], "asDropdown": True, "keepTime": True}],
        "panels": panels,
    }


def _variables(scope: str) -> list[dict[str, Any]]:
    """The board's variables. Each offers only the label values that the choices of the earlier ones leave."""
    made: list[dict[str, Any]] = []
    before: list[str] = []
    for label, variable in VARIABLES.items():
        name = variable.removeprefix("$")
        made.append(
            {
                "name": name,
                "type": "query",
                "datasource": _SOURCE,
                "query": f"label_values({scope}{{{','.join(before)}}}, {label})",
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
        before.append(f'{label}=~"{variable}"')
    return made


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
    elif panel.kind == "stat":
        defaults["thresholds"] = _thresholds(panel)
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    else:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"scheme": "Blues", "steps": 64}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            | ({"format": "heatmap"} if panel.kind == "heatmap" else {})
            for i, query in enumerate(panel.queries)
        ],
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    """A tile's colours by its value: green, yellow, red as it rises; or as it falls, where `bad` is below `warn`."""
    if panel.warn is None or panel.bad is None:
        return {"mode": "absolute", "steps": [{"color": "text", "value": None}]}
    steps = [("green", None), ("yellow", panel.warn), ("red", panel.bad)]
    if panel.bad < panel.warn:
        steps = [("red", None), ("yellow", panel.bad), ("green", panel.warn)]
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}
