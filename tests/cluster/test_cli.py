"""Tests how the command line reads flags, and its errors."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import cli
from cluster.cli import DEFAULT_PORT, app, settle
from cluster.config import ConfigError

TP4 = Path(__file__).parent.parent / "golden" / "tp4"


def test_without_flags_each_worker_has_two_ranks_on_the_default_port() -> None:
    config = settle(None, {}, [])
    assert (config.prefill.tp, config.decode.tp, config.port, config.model) == (2, 2, DEFAULT_PORT, None)


def test_flags_override_settings_override_yaml(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("decode: {replicas: 2, tp: 4}\nprefill: {tp: 4}\nport: 1\nslots: 1\nrouter: {max_queue: 3}\n")
    config = settle(file, {"port": 3}, ["port=2", "slots=2", "router.retry_after_s=9"])
    assert (config.port, config.slots, config.decode.replicas, config.decode.tp) == (3, 2, 2, 4)
    assert (config.router.max_queue, config.router.retry_after_s) == (3, 9)


def test_an_empty_yaml_is_all_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("")
    assert settle(file, {}, []).decode.tp == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "must hold settings"),
        ("a: [", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
        ("router: {max_queue: 3}\nport: 1\nrouter: {}\n", "found 'router' twice"),
    ],
)
def test_a_yaml_that_holds_no_settings_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        settle(file, {}, [])


def test_a_yaml_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config: can't read"):
        settle(tmp_path / "none.yaml", {}, [])


@pytest.mark.parametrize("setting", ["slots", "=3", "slots="])
def test_a_setting_must_have_the_form_key_value(setting: str) -> None:
    with pytest.raises(ConfigError, match="must read KEY=VALUE"):
        settle(None, {}, [setting])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "model: no checkpoint folder at /nowhere"),
        (["--model", str(TP4), "--tp", "3"], "decode.tp: "),
        (["--set", "slotz=3"], "slotz: unknown setting; did you mean slots?"),
        (["--port", "99999"], "port: "),
        (["--dtype", "int3"], "dtype: "),
        (["--set", "prefill.tp=3"], "prefill.tp: "),
        (["--set", "port=null"], "port: "),
        (["--set", "router.data_dir=/proc/nothing"], "router.data_dir: nothing can be written to /proc"),
    ],
)
def test_serve_refuses_before_anything_starts(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_serve_refuses_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "--model", str(TP4), "--port", str(port)])
    assert result.exit_code == 2
    assert f"port: can't listen on 127.0.0.1:{port}" in result.stderr


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in ("serve", "chat", "status"):
        assert name in result.output


STATUS = {
    "model": "m",
    "ready": False,
    "reason": "no decode worker is live",
    "router": {"name": "router-1", "pid": 11, "in_flight": 3, "max_queue": 9},
    "pools": {
        "prefill": {
            "configured": 1,
            "live": 1,
            "starting": [],
            "workers": [
                {
                    "id": "prefill-a", "state": "live", "pid": 12, "node": "host", "queued": 1, "running": 2,
                    "transferring": 4, "unreachable": ["prefill-far"], "free_slots": 5, "slots": 6, "free_pages": 7,
                    "pages": 8,
                    "ranks": [{"rank": 0, "pid": 13, "node": "host", "device": "cpu"}],
                }
            ],
        },
        "decode": {
            "configured": 2,
            "live": 0,
            "starting": [],
            "workers": [{"id": "decode-b", "state": "connecting", "problem": "connection refused"}],
        },
    },
}  # fmt: skip


def test_status_shows_workers_ranks_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "fetch_status", lambda url: STATUS)
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0
    for text in (
        "no decode worker is live",
        "prefill-a",
        "5/6",
        "7/8",
        "rank 0",
        "prefill-far",
        "13",
        "connection refused",
        "missing",
    ):
        assert text in result.output


def test_status_without_a_cluster_fails_and_names_the_url() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = CliRunner().invoke(app, ["status", "--url", url])
    assert result.exit_code == 1
    assert url in result.stderr
