"""Tests the live page over HTTP and in a browser."""

import asyncio
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.figures import EXPIRY_S, RouterFigures
from router.history import KEPT, History
from tests.router.conftest import Stage, pair, staged
from tests.router.page_stage import CHROMIUM, browse, page_stage

MISSING = "no chromium here: apt-get install chromium (`.ci/run` does)"
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


def test_the_page_s_history_equals_the_metrics_and_is_bounded(stage: Stage) -> None:
    history = History(stage.gateway.metrics.collect)
    for moment in range(KEPT + 10):
        history.record(float(moment))
    told = history.since(0.0)
    assert told["times"] == [float(m) for m in range(10, KEPT + 10)]
    assert history.since(float(KEPT + 9)) == {"times": [], "series": {}}
    assert len(history.since(float(KEPT))["times"]) == 9
    last = {name: column[-1] for name, column in told["series"].items()}
    scraped = _scraped(stage)
    # Figures that change by themselves: with the time, and with a worker's next message.
    moving = ("ling_loop_hold_seconds", "ling_worker_step_seconds")
    found, wanted = ({n: v for n, v in of.items() if not n.startswith(moving)} for of in (last, scraped))
    assert found == wanted


def _scraped(stage: Stage) -> dict[str, float]:
    text = stage.http.get(f"{stage.url}/metrics").text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_a_browser_shows_the_figures_of_metrics(stage: Stage, tmp_path: Path) -> None:
    """The test compares after the load, so that the page's and /metrics' figures no longer change."""
    answers = [stage.http.post(f"{stage.url}/v1/chat/completions", json=BODY) for _ in range(30)]
    assert all(answer.status_code == 200 for answer in answers)
    _until_history_has(stage, _scraped(stage))
    document, log = browse(stage.url, tmp_path, "--dump-dom")
    assert not [line for line in log.splitlines() if ":CONSOLE" in line]
    scraped = _scraped(stage)
    shown = html.unescape(re.sub(r"<[^>]+>", " ", document))
    assert "tiny" in shown
    assert " ready " in shown
    for series in ("ling_generated_tokens_total", "ling_prompt_tokens_total"):
        assert f"{scraped[series]:,.0f} tokens in all" in shown
    assert scraped["ling_generated_tokens_total"] >= 30
    assert "1 router, 0 of" in shown
    for worker in ("p0", "d0"):
        assert re.search(rf"{worker}\s+live", shown)
    slots = next(w for w in _workers(stage) if w["id"] == "d0")
    assert f"{slots['slots'] - slots['free_slots']} / {slots['slots']}" in shown
    assert document.count("<path") == 12


def _until_history_has(stage: Stage, wanted: dict[str, float]) -> None:
    """Poll the history, which is recorded every other second, until it has /metrics' figures."""
    last: dict[str, float] = {}
    while any(last.get(name) != value for name, value in wanted.items() if name.endswith("_tokens_total")):
        told = stage.http.get(f"{stage.url}/live").json()
        last = {name: column[-1] for name, column in told["series"].items()}


def _workers(stage: Stage) -> list[dict[str, Any]]:
    pools = json.loads(stage.http.get(f"{stage.url}/status").text)["pools"]
    return [w for pool in pools.values() for w in pool["workers"]]


def test_figures_of_other_routers_have_their_names(stage: Stage) -> None:
    told: list[dict[str, float]] = []

    async def exchange(own: dict[str, float]) -> dict[str, dict[str, float]]:
        told.append(own)
        return {"router-b": {"ling_in_flight": 7.0, "ling_requests_total{api=chat,status=200}": 9.0}}

    async def once() -> dict[str, list[float | None]]:
        history = History(stage.gateway.metrics.collect, exchange)
        history.start()
        while not history.since(0.0)["times"]:
            await asyncio.sleep(0)
        await history.close()
        return history.since(0.0)["series"]

    series = asyncio.run(once())
    assert series["ling_in_flight{router=router-b}"] == [7.0]
    assert series["ling_requests_total{router=router-b,api=chat,status=200}"] == [9.0]
    assert series["ling_in_flight"] == [0.0]
    # All routers tell the same of workers: summed, they would count several times.
    assert not [name for name in told[0] if name.startswith("ling_worker")]


def test_a_router_that_is_gone_is_forgotten() -> None:
    figures = RouterFigures()
    assert figures.tell("a", {"x": 1.0}, now=0.0) == {}
    assert figures.tell("b", {"x": 2.0}, now=EXPIRY_S / 2) == {"a": {"x": 1.0}}
    assert figures.tell("b", {"x": 3.0}, now=EXPIRY_S + 1) == {}


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_shows_all_routers_as_one_cluster_and_highlights_problems(tmp_path: Path) -> None:
    with page_stage() as url:
        document, log = browse(url, tmp_path, "--window-size=1280,1000", "--dump-dom")
    assert not [line for line in log.splitlines() if ":CONSOLE" in line]
    shown = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", document)).split())
    assert "2 routers, 96 of 2,048 in flight" in shown
    assert "Output 400 tok/s" in shown
    assert "Answers 8.0 /s 0.4 /s failed" in shown
    assert "decode-t5w9 lost: its connection broke" in shown
    assert "prefill missing" in shown
    assert shown.count("−4 min −2 min now") == 6
    # A gap of thirty seconds is a gap: each line begins anew after it.
    paths = re.findall(r'<path class="[ab]" d="([^"]+)"', document)
    assert [path.count("M") for path in paths] == [2] * 11


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_screens_and_phones(dark: bool, tmp_path: Path) -> None:
    found = {}
    with page_stage() as url:
        for width in (1280, 390):
            scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
            document, _ = browse(f"{url}/frame?{width}", tmp_path, scheme, "--window-size=1300,1000", "--dump-dom")
            (text,) = re.findall(r"<pre>(.*?)</pre>", document)
            found[width] = json.loads(html.unescape(text))
    for width, page in found.items():
        assert page["overflow"] <= 0, width
        assert page["cut"] == [], width
        assert len(page["plots"]) == 1, "plots differ in size"
        assert page["workersFirst"] == (width == 390)
        assert (sum(map(int, re.findall(r"\d+", page["ground"]))) < 380) == dark
        assert page["failures"]
        assert not set(page["failures"]) & set(page["lines"])
