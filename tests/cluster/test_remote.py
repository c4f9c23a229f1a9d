"""Tests that commands print one line of error and exit with 1 if the URL is not a cluster's."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cluster import remote
from cluster.cli import app

PROXY = httpx.Response(502, text="<html>\n<b>Bad Gateway</b>\n</html>")
STRANGER = httpx.Response(404, json={"detail": "Not Found"})
LIST = httpx.Response(200, json=[])
OLD = httpx.Response(200, json={"pools": {}})
STATUS, DRAIN, SAVE = ["status"], ["drain", "decode-1"], ["snapshot", "save", "s", "file"]


@pytest.mark.parametrize(
    ("command", "answer", "told"),
    [
        (STATUS, PROXY, "http://x/status answered 502: <html> <b>Bad Gateway</b> </html>"),
        (STATUS, STRANGER, "http://x/status answered 404: "),
        (STATUS, LIST, "what answers at http://x/status is no cluster"),
        (STATUS, OLD, "http://x is of another version: KeyError('ready')"),
        (DRAIN, PROXY, "http://x/v1/workers/decode-1/drain answered 502: "),
        (DRAIN, STRANGER, "answered 404: "),
        (DRAIN, LIST, "what answers at http://x/v1/workers/decode-1/drain is no cluster"),
        (SAVE, PROXY, "http://x/v1/sessions/s/snapshot answered 502: "),
        (SAVE, STRANGER, "answered 404: "),
        (SAVE, LIST, "what came is no whole snapshot"),
    ],
)
def test_a_url_that_is_no_cluster_s_gives_one_line_of_error(
    command: list[str], answer: httpx.Response, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = httpx.Client

    def client(**settings: Any) -> httpx.Client:
        again = httpx.Response(answer.status_code, content=answer.content)
        return real(**settings, transport=httpx.MockTransport(lambda request: again))

    monkeypatch.setattr(remote.httpx, "Client", client)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, [*command, "--url", "http://x"])
    assert isinstance(ended.exception, SystemExit)
    assert ended.exit_code == 1
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "--metrics-port", "99999"], "65535"),
        (["plan", "--gpu", "h200-141gb", "--host-gb", "inf"], "--host-gb: must be a number"),
        (["serve", "--host", "192.0.2.1"], "host: can't listen on 192.0.2.1:8000"),
    ],
)
def test_impossible_numbers_and_addresses_are_refused(words: list[str], told: str) -> None:
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 2
    assert told in " ".join(ended.stderr.replace("│", " ").split())
