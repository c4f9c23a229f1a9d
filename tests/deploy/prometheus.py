"""Runs a real Prometheus that scrapes one target."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.serving import free_port

BINARY = shutil.which("prometheus")
RULES = Path(__file__).parent.parent.parent / "dashboards" / "alerts.yaml"


class Prometheus:
    """A client of Prometheus' HTTP API."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20, trust_env=False)

    def up(self) -> bool:
        """Whether Prometheus scrapes its target."""
        try:
            answer = self._client.get("/query", params={"query": "up"})
        except httpx.TransportError:
            return False
        return answer.is_success and bool(answer.json()["data"]["result"])

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series now; AssertionError with Prometheus' message if it refuses the query."""
        answer = self._client.get("/query", params={"query": expr})
        said = answer.json()
        assert said["status"] == "success", f"{expr}: {said}"
        return [(series["metric"], float(series["value"][1])) for series in said["data"]["result"]]

    def rules(self) -> list[dict[str, Any]]:
        found = self._client.get("/rules").json()["data"]["groups"]
        return [rule for group in found for rule in group["rules"]]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus, which scrapes `target` (host:port) and evaluates the alert rules every second."""
    assert BINARY is not None
    config, port = folder / "prometheus.yml", free_port()
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{RULES}']\n"
        f"scrape_configs: [{{job_name: ray, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    with open(folder / "prometheus.log", "w") as log:
        process = subprocess.Popen(
            [
                BINARY, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
            process.wait(timeout=30)
