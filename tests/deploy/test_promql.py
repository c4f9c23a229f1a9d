"""Tests all expressions of boards and alerts on a real Prometheus that scrapes a real cluster under load."""

import itertools
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.dashboards.alerts import ALERTS
from cluster.dashboards.board import Unit
from cluster.dashboards.promql import PREFIX, WINDOW, unchosen
from cluster.dashboards.write import BOARDS
from router.access.keys import hashed, make_key
from tests.cluster.doors import listening
from tests.cluster.serving import Serving, serving
from tests.deploy.prometheus import BINARY, RULES, Prometheus, prometheus
from wire.metrics.table import TABLE

MISSING = "no prometheus on PATH: apt-get install prometheus (`.ci/run` does)"
LOADED_S = 120.0
# A little above 1: rates are extrapolated to their windows' ends.
MOST: dict[Unit, float] = {
    "s": 1000.0,
    "percentunit": 1.1,
    "Bps": 1e12,
    "reqps": 1e5,
    "short": 1e7,
    "none": 1e3,
    "bytes": 1e12,
}
OF_ROUTERS = {metric.name.removesuffix("_total") for metric in TABLE if metric.source == "router"}
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextmanager
def load(at: Serving, key: str, threads: int) -> Iterator[None]:
    """Streams of completions, until the block ends; fails if one of them does."""
    over = threading.Event()
    problems: list[str] = []

    def stream(seed: int) -> None:
        with httpx.Client(base_url=at.url, timeout=60, trust_env=False) as client:
            for turn in itertools.count():
                if over.is_set():
                    return
                asked = {
                    "model": "auto", "prompt": f"Client {seed}, turn {turn}: " + "once upon a time " * 8,
                    "stream": True, "max_tokens": 24, "ignore_eos": True,
                }  # fmt: skip
                answer = client.post("/v1/completions", json=asked, headers={"authorization": f"Bearer {key}"})
                if answer.status_code != 200 or not answer.text.endswith("data: [DONE]\n\n"):
                    problems.append(answer.text)
                    return

    clients = [threading.Thread(target=stream, args=(seed,)) for seed in range(threads)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()
    assert not problems


def agent(at: Serving) -> str:
    """host:port of the node's metrics agent, once it has our metrics."""
    found = ""

    def tells() -> bool:
        nonlocal found
        family = psutil.Process(at.process.pid).children(recursive=True)
        for _, port in listening(p for p in family if "DashboardAgent" in str(p.cmdline())):
            try:
                page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False)
            except httpx.TransportError:
                continue
            if f"{PREFIX}ling_worker_running" in page.text and f"{PREFIX}ling_in_flight" in page.text:
                found = f"127.0.0.1:{port}"
        return bool(found)

    at.until(tells, 40)
    return found


def wrong(at: Prometheus, expr: str, unit: Unit) -> str | None:
    """The problems of an expression's present values."""
    values = [value for _, value in at.query(unchosen(expr).replace(WINDOW, "10s")) if math.isfinite(value)]
    if not values:
        return "no data"
    return None if all(0 <= value <= MOST[unit] for value in values) else f"{values} in {unit}"


def of_routers(page: str, prefix: str) -> Series:
    """The routers' series of a page, without the labels that Ray adds."""
    keys = {metric.name: {*metric.labels, "le"} for metric in TABLE}
    found: Series = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = sample.name.removeprefix(prefix)
            base = name
            for suffix in ("_bucket", "_sum", "_count"):
                base = base.removesuffix(suffix) if base not in keys else base
            if sample.name.startswith(prefix) and base.removesuffix("_total") in OF_ROUTERS:
                labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k in keys[base]))
                found[name, labels] = sample.value
    return found


def evaluate(at: Serving, key: str, folder: Path) -> None:
    """Check all expressions on a cluster that asks for the API key `key` and has a known card."""
    # The board of GPUs reads another exporter.
    ours = [board for board in BOARDS if board.scope]
    pending = {(q.expr, p.unit) for board in ours for p in board.panels for q in p.queries}
    target = agent(at)
    with prometheus(folder, target) as watching, load(at, key, 4):
        problems: dict[str, str] = {}
        deadline = time.monotonic() + LOADED_S
        while pending:
            assert time.monotonic() < deadline, problems
            if watching.up():
                found = {asked: wrong(watching, *asked) for asked in pending}
                problems = {expr: said for (expr, _), said in found.items() if said is not None}
                pending = {asked for asked in pending if found[asked] is not None}
            time.sleep(0.5)  # of a scrape a second
        at.until(lambda: all(rule["health"] != "unknown" for rule in watching.rules()))
        assert {rule["name"]: rule.get("lastError") for rule in watching.rules()} == {a.name: None for a in ALERTS}
    # Both pages show the same numbers, once nothing moves any more.
    at.until(at.all_free)

    def alike() -> bool:
        told = of_routers(httpx.get(f"http://{target}/metrics", timeout=10, trust_env=False).text, PREFIX)
        own = of_routers(at.client.get("/metrics").text, "")
        return bool(own) and own == told

    at.until(alike)


@pytest.mark.recipe
@pytest.mark.timeout(420)  # on a busy machine the start alone takes three minutes
@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_every_expression_tells_something_sane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    key = make_key()
    keys = tmp_path / "keys"
    keys.write_text(f"somebody sha256:{hashed(key)}\n")
    settings = (
        "card=h20-96gb",
        "decode.max_replicas=1",
        f"router.api_keys={keys}",
        f"cache.disk_dir={tmp_path}",
        "cache.host_bytes=100000000",
    )
    with serving("--tp", "1", "--slots", "8", *(word for s in settings for word in ("--set", s))) as at:
        evaluate(at, key, tmp_path)


@pytest.mark.skipif(shutil.which("promtool") is None, reason=MISSING)
def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout
