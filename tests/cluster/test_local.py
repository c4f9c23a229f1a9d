"""A cluster of `ling serve`'s own that does not come up."""

import pytest
import ray

from cluster.local import LocalRay


def test_ray_s_failure_is_one_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**settings: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does, of no class of its own

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr("cluster.local._adopt_orphans", lambda: None)
    local = LocalRay()
    with pytest.raises(RuntimeError, match="Ray did not start on this machine: The current node timed out"):
        local.start()
    local.folder.rmdir()
