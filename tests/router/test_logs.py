"""Tests a request's log line: its ids and figures, and its texts only if that is switched on."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.router.conftest import pair, staged
from wire.logs import PACKAGES, LogSettings, set_up

BODY = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "a secret thing"}]}


@pytest.fixture
def _as_before() -> Iterator[None]:
    kept = [(logging.getLogger(p), logging.getLogger(p).handlers, logging.getLogger(p).propagate) for p in PACKAGES]
    levels = [logging.getLogger(p).level for p in PACKAGES]
    yield
    for (logger, handlers, propagate), level in zip(kept, levels, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("prompts", [False, True])
def test_a_request_is_one_line(checkpoint: Path, capfd: pytest.CaptureFixture[str], prompts: bool) -> None:
    set_up(LogSettings("json"), router="r0")
    with staged(checkpoint, pair(), log_prompts=prompts) as stage:
        url = f"{stage.url}/v1/chat/completions"
        stage.http.post(url, json=BODY, headers={"x-request-id": "mine"}).raise_for_status()
        stage.http.post(url, json=BODY | {"max_tokens": 0})
    good, bad = [line for line in lines(capfd) if line["logger"] == "router.http.entrance"]
    assert (good["request_id"], good["status"], good["output_tokens"], good["router"]) == ("mine", 200, 5, "r0")
    assert good["finish"] == ["length"]
    assert good["prompt_tokens"] > 0
    assert good["served_by"][0]["decode_worker"] == "d0"
    assert (bad["status"], bad["level"]) == (400, "info")
    assert "output_tokens" not in bad
    assert [("secret thing" in json.dumps(line)) for line in (good, bad)] == [prompts, prompts]


@pytest.mark.usefixtures("_as_before")
def test_people_get_text_and_levels_hold(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogSettings("text", "warning"), worker="w0")
    log = logging.getLogger("workers.somewhere")
    log.info("not this")
    log.warning("but %s", "this", extra={"fields": {"request_id": "x"}})
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("WARNING w0 workers.somewhere: but this request_id=x")


@pytest.mark.usefixtures("_as_before")
def test_an_exception_is_in_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    set_up(LogSettings("json"))
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("cluster").exception("failed")
    (line,) = lines(capfd)
    assert "ValueError: no" in line["error"]
