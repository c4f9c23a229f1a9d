"""Tests where a cluster stores what outlives it."""

from pathlib import Path

import pytest

from cluster import cli
from cluster.cli import settle
from cluster.config import ConfigError
from cluster.parse import parse
from cluster.resolve import resolve, router_config


def test_the_users_state_directory_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert settle(None, {}, []).router.data_dir == str(tmp_path / "state" / "ling-cluster")
    assert settle(None, {}, ["router.data_dir=elsewhere"]).router.data_dir == "elsewhere"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settle(None, {}, []).router.data_dir == str(tmp_path / ".local" / "state" / "ling-cluster")
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    assert settle(None, {}, []).router.data_dir is None
    assert parse({}).router.data_dir is None
    assert list(tmp_path.iterdir()) == []


def test_routers_get_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"router.data_dir": "data", "router.max_batch_lines": "7"}
    config = router_config(resolve(parse(settings), gpus=0), "r", "secret")
    assert (config.data_dir, config.max_batch_lines) == (str(tmp_path / "data"), 7)
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match=r"router\.data_dir: .*/data is no folder"):
        resolve(parse(settings), gpus=0)
