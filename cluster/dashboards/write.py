"""Writes the committed files of boards, alerts and the metrics page: `python -m cluster.dashboards.write`."""

import json
from pathlib import Path
from typing import Any

import yaml

from cluster.dashboards.alerts import rules
from cluster.dashboards.board import Board, render
from cluster.dashboards.capacity import CAPACITY
from cluster.dashboards.experts import EXPERTS
from cluster.dashboards.fleet import FLEET
from cluster.dashboards.gpus import GPUS
from cluster.dashboards.metrics_page import metrics_page
from cluster.dashboards.request_path import REQUEST_PATH
from cluster.dashboards.workers_cache import WORKERS

BOARDS: tuple[Board, ...] = (FLEET, REQUEST_PATH, WORKERS, EXPERTS, CAPACITY, GPUS)
_ROOT = Path(__file__).parent.parent.parent


def files() -> dict[Path, str]:
    """Each file's path in the checkout, and its content."""
    boards = {_ROOT / f"dashboards/{board.uid.removeprefix('ling-')}.json": _json(render(board)) for board in BOARDS}
    alerts = yaml.safe_dump(rules(), sort_keys=False, width=110, allow_unicode=True)
    return boards | {_ROOT / "dashboards/alerts.yaml": alerts, _ROOT / "docs/METRICS.md": metrics_page()}


def _json(board: dict[str, Any]) -> str:
    return json.dumps(board, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
        print(path)
