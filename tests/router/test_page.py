"""The live page: what it is made of over HTTP, and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.history import KEPT, History
from tests.router.conftest import Stage, pair, staged

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BODY = {"model": "auto", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def stage(checkpoint: Path) -> Iterator[Stage]:
    with staged(checkpoint, pair()) as made:
        yield made


def test_browsers_get_the_page_and_programs_the_list(stage: Stage) -> None:
    page = stage.http.get(f"{stage.url}/", headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert stage.http.get(f"{stage.url}/").json()["model"] == "tiny"
    # All it loads is its own.
    for name in re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', page.text):
        assert stage.http.get(f"{stage.url}/{name}").status_code == 200
    assert "//" not in page.text.replace("<!doctype", "")


def test_since_must_be_a_time(stage: Stage) -> None:
    refused = stage.http.get(f"{stage.url}/live", params={"since": "yesterday"})
    assert refused.status_code == 400
    assert "since" in refused.json()["error"]["message"]


def test_history_is_what_metrics_say_and_ends(stage: Stage) -> None:
    history = History(stage.gateway.metrics.collect)
    for moment in range(KEPT + 10):
        history.record(float(moment))
    told = history.since(0.0)
    assert told["times"] == [float(m) for m in range(10, KEPT + 10)]
    assert history.since(float(KEPT + 9)) == {"times": [], "series": {}}
    assert len(history.since(float(KEPT))["times"]) == 9
    assert {name: column[-1] for name, column in told["series"].items()} == _scraped(stage)


def _scraped(stage: Stage) -> dict[str, float]:
    text = stage.http.get(f"{stage.url}/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_shows_the_figures_of_metrics(stage: Stage, tmp_path: Path) -> None:
    """After some load, so that what the page shows and what /metrics says stay the same."""
    answers = [stage.http.post(f"{stage.url}/v1/chat/completions", json=BODY) for _ in range(30)]
    assert all(answer.status_code == 200 for answer in answers)
    _until_history_has(stage, _scraped(stage))
    document, log = _browse(stage.url, tmp_path)
    assert not [line for line in log.splitlines() if ":CONSOLE" in line]
    scraped = _scraped(stage)
    shown = html.unescape(re.sub(r"<[^>]+>", " ", document))
    assert "tiny" in shown
    assert " ready " in shown
    for series in ("ling_generated_tokens_total", "ling_prompt_tokens_total"):
        assert f"{scraped[series]:,.0f} tokens" in shown
    assert scraped["ling_generated_tokens_total"] >= 30
    assert "30 answered, 0 in flight" in shown
    for worker in ("p0", "d0"):
        assert re.search(rf"{worker}\s+(prefill|decode)\s+live", shown)
    slots = next(w for w in _workers(stage) if w["id"] == "d0")
    assert f"{slots['slots'] - slots['free_slots']} / {slots['slots']}" in shown
    assert document.count("<polyline") == 12


def _until_history_has(stage: Stage, wanted: dict[str, float]) -> None:
    """The page draws what is recorded every other second: ask for that until it is what /metrics says."""
    last: dict[str, float] = {}
    while any(last.get(name) != value for name, value in wanted.items() if name.endswith("_tokens_total")):
        told = stage.http.get(f"{stage.url}/live").json()
        last = {name: column[-1] for name, column in told["series"].items()}


def _workers(stage: Stage) -> list[dict[str, Any]]:
    pools = json.loads(stage.http.get(f"{stage.url}/status").text)["pools"]
    return [w for pool in pools.values() for w in pool["workers"]]


def _browse(url: str, folder: Path) -> tuple[str, str]:
    """The page as it stands after it has drawn itself a few times, and the browser's log."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--window-size=1200,1100",
            "--virtual-time-budget=9000", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr
