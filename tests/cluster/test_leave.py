"""Tests how a node leaves, with a script in place of `ray`."""

import os
import sys
import time
from pathlib import Path

import pytest

from cluster import leave


def script(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ray").write_text(f"#!/bin/sh\n{line}\n")
    (folder / "ray").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_ray_is_told_how_long_the_node_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, f'echo "$@" > {tmp_path}/told', monkeypatch)
    assert leave.drain(645)
    told = (tmp_path / "told").read_text().split()
    assert told[0] == "drain-node"
    assert told[-2:] == ["--deadline-remaining-seconds", "645"]


def test_without_ray_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "exit 1", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["leave", "1000"])
    monkeypatch.setattr(leave, "wait", lambda deadline: pytest.fail("it waits"))
    assert leave._main() == 1


def test_it_waits_until_no_replica_is_left() -> None:
    left = iter([2, 1, 1, 0])
    slept: list[float] = []
    assert leave.wait(time.monotonic() + 1000, lambda: next(left), slept.append)
    assert len(slept) == 3


def test_it_does_not_wait_beyond_the_deadline() -> None:
    assert not leave.wait(time.monotonic() - 1, lambda: 1, lambda seconds: pytest.fail("it sleeps"))
