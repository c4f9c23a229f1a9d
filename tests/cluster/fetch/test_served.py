"""`ling serve` of a checkpoint that lies on a hub, from an empty cache to an answer."""

from pathlib import Path

import pytest

from cluster.resolve import EMBEDDED
from tests.cluster.fetch.hub_server import hub_server, of_folder
from tests.cluster.serving import serving

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
    # The command and two workers, of one host.
    assert repository.sent["model.safetensors"] == (EMBEDDED / "model.safetensors").stat().st_size
