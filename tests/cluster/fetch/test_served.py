"""Tests `ling serve` with a checkpoint on a hub, from an empty cache to an answer."""

from pathlib import Path

import pytest

from cluster.resolve import EMBEDDED
from tests.cluster.fetch.hub_server import hub_server, of_folder
from tests.cluster.serving import kill, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_repository_s_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = of_folder("org/ling-nano", EMBEDDED)
    with hub_server(repository) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        with serving("--model", "org/ling-nano", "--tp", "1") as cluster:
            body = {"model": "ling-nano", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
            assert cluster.client.post("/v1/chat/completions", json=body).status_code == 200
            workers = cluster.workers("prefill") + cluster.workers("decode")
            assert len({worker["weights_id"] for worker in workers}) == 1
            # A worker that comes again takes its weights from the other: there are none on the disk, nor from the hub.
            for blob in tmp_path.rglob("model.safetensors"):
                blob.resolve().unlink()
                blob.unlink()
            (old,) = cluster.workers("decode")
            kill(old["ranks"][0]["pid"])
            cluster.until(lambda: [w["id"] for w in cluster.workers("decode") if w["state"] == "live"] != [old["id"]])
            cluster.until(lambda: any(w["state"] == "live" for w in cluster.workers("decode")), 120)
            (new,) = cluster.workers("decode")
            assert new["id"] != old["id"]
            assert cluster.client.post("/v1/chat/completions", json=body).status_code == 200
    # The command and three workers, of one host.
    assert repository.sent["model.safetensors"] == (EMBEDDED / "model.safetensors").stat().st_size
