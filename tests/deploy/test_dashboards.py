"""Tests the boards: the committed files are what the code writes, and a second push changes nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli import app
from cluster.dashboards.alerts import ALERTS
from cluster.dashboards.board import render
from cluster.dashboards.promql import rate, series, unchosen
from cluster.dashboards.write import BOARDS, files
from tests.cluster.serving import free_port
from tests.deploy.grafana import TOKEN, Grafana, grafana
from wire.metrics import table

RUNBOOK = Path(__file__).parent.parent.parent / "docs" / "RUNBOOK.md"


@pytest.fixture
def server() -> Iterator[Grafana]:
    with grafana() as started:
        yield started


def push(url: str, *more: str, token: str = TOKEN) -> Result:
    env = {"GRAFANA_TOKEN": token, "NO_COLOR": "1", "TERMINAL_WIDTH": "200"}
    return CliRunner().invoke(app, ["dashboards", "push", "--url", url, *more], env=env)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_committed_files_are_those_that_the_code_writes(path: Path) -> None:
    assert path.read_text() == files()[path], f"{path} is stale: python -m cluster.dashboards.write"


def test_the_folder_of_boards_has_no_other_file() -> None:
    folder = RUNBOOK.parent.parent / "dashboards"
    assert set(folder.iterdir()) == {path for path in files() if path.parent == folder}


def test_every_metric_is_on_a_board_or_in_an_alert() -> None:
    used = " ".join([q.expr for b in BOARDS for p in b.panels for q in p.queries] + [a.expr for a in ALERTS])
    assert [m.name for m in table.TABLE if not re.search(rf"\bray_{m.name}(_bucket|_sum|_count)?\b", used)] == []


def test_panels_do_not_overlap_and_have_descriptions() -> None:
    for board in BOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in render(board)["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells
        assert all(panel.text and panel.queries for panel in board.panels)


def test_an_expression_can_name_only_existing_metrics_and_labels() -> None:
    found = series(table.TTFT, "_bucket", **{"class": "a|b"})
    assert found == 'ray_ling_ttft_seconds_bucket{cluster=~"$cluster",namespace=~"$namespace",class=~"a|b"}'
    with pytest.raises(ValueError, match="ling_ttft_seconds has the labels"):
        rate(table.TTFT, "worker")
    with pytest.raises(ValueError, match="not color"):
        series(table.TTFT, color="red")


def test_each_alert_has_its_line_in_the_runbook() -> None:
    assert re.findall(r"^## (Ling\w+)$", RUNBOOK.read_text(), re.MULTILINE) == [alert.name for alert in ALERTS]


def test_a_second_push_changes_nothing(server: Grafana) -> None:
    first = push(server.url, "--folder", "Serving", "--datasource", "Thanos")
    assert first.exit_code == 0, first.output
    assert re.findall(r"^\w+", first.stdout, re.MULTILINE) == ["created"] * len(BOARDS)
    (folder,) = [f["uid"] for f in server.folders if f["title"] == "Serving"]
    assert {at["meta"]["folderUid"] for at in server.boards.values()} == {folder}
    for kept in server.boards.values():
        variable = kept["dashboard"]["templating"]["list"][0]
        assert variable["current"] == {"text": "Thanos", "value": "P2", "selected": True}
    before, kept_before = len(server.writes), dict(server.boards)
    second = push(server.url, "--folder", "Serving", "--datasource", "P2")
    assert re.findall(r"^\w+", second.stdout, re.MULTILINE) == ["unchanged"] * len(BOARDS)
    assert (len(server.writes), server.boards) == (before, kept_before)


def test_only_what_differs_is_pushed(server: Grafana) -> None:
    push(server.url)
    server.boards["ling-fleet"]["dashboard"]["panels"][1]["title"] = "changed by hand"
    server.boards["ling-experts"]["meta"]["folderUid"] = "other"
    del server.boards["ling-capacity"], server.boards["ling-gpus"]
    again = push(server.url)
    outcomes = dict(re.findall(r"^(\w+) +.*/d/(\S+)$", again.stdout, re.MULTILINE))
    assert outcomes == {"updated": "ling-experts", "unchanged": "ling-workers", "created": "ling-gpus"}
    assert again.stdout.count("updated") == 2
    assert {at["dashboard"]["version"] for at in server.boards.values()} == {1, 2}
    assert len(server.folders) == 2


@pytest.mark.parametrize(
    ("more", "token", "says"),
    [
        (("--datasource", "Loki"), TOKEN, "no Prometheus data source 'Loki'; there are: Prometheus, Thanos"),
        ((), "wrong", "answered 401: the token may not do that"),
        ((), "", "GRAFANA_TOKEN is not set"),
    ],
)
def test_a_wrong_argument_is_reported_before_anything_changes(
    server: Grafana, more: tuple[str, ...], token: str, says: str
) -> None:
    answer = push(server.url, *more, token=token)
    assert answer.exit_code == 1
    assert says in answer.stderr
    assert server.writes == []


def test_a_server_that_is_not_there_is_named() -> None:
    answer = push(f"http://127.0.0.1:{free_port()}")
    assert answer.exit_code == 1
    assert "can't be reached" in answer.stderr


def test_boards_have_variables_and_coloured_tiles() -> None:
    for board in BOARDS:
        variables = [v["name"] for v in render(board)["templating"]["list"]]
        assert variables == ["datasource", *(["cluster", "namespace", "pool", "worker"] if board.scope else [])]
    tiles = [p for p in render(BOARDS[0])["panels"] if p["type"] == "stat"]
    assert len(tiles) >= 5
    for tile in tiles[:-1]:
        colors = [step["color"] for step in tile["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert colors in (["green", "yellow", "red"], ["red", "yellow", "green"])
    assert {"heatmap", "stat", "timeseries"} <= {p["type"] for b in BOARDS for p in render(b)["panels"]}


def test_alerts_of_two_clusters_are_two() -> None:
    for alert in ALERTS:
        expr = unchosen(alert.expr)
        assert "$" not in expr
        selectors = re.findall(r"ray_\w+(\{[^}]*\})?", expr)
        assert all(s.startswith('{cluster=~".*",namespace=~".*"') for s in selectors)
        assert all(g.startswith("cluster, namespace") for g in re.findall(r"by \(([^)]*)\)", expr))
