"""Tests the error of a local cluster that does not start."""

from pathlib import Path

import pytest
import ray

from cluster.local import LocalRay


def test_ray_s_failure_is_one_error_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def late(**settings: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does, of no class of its own

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr("cluster.local._adopt_orphans", lambda: None)
    monkeypatch.setattr("cluster.local._leave_out", lambda *starts: None)
    local = LocalRay(tmp_path, metrics_port=None)
    with pytest.raises(RuntimeError, match="Ray did not start on this machine: The current node timed out"):
        local.start()
