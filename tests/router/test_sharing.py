"""Tests who may use whose prefixes: the same tenant with the same salt, or all if the operator allows it."""

from pathlib import Path
from typing import Any

import pytest

from router.access.keys import hashed, make_key
from router.relay.prefixes import candidates
from tests.router.conftest import Stage, pair, staged

KEYS = {"acme": make_key(), "other": make_key()}


def held(stage: Stage, tenant: str, **body: Any) -> dict[str, Any]:
    """The kept prefix of a prompt that a tenant sent, for a request with the same tenant and salt."""
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}], **body}
    headers = {"authorization": f"Bearer {KEYS[tenant]}"}
    before = len(stage["p0"].received)
    answer = stage.http.post(f"{stage.url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    asked = stage["p0"].received[before]
    names = candidates(asked.token_ids, asked.prefix.boundaries, stage["p0"].info.page_size, asked.prefix.scope)
    return dict(stage.gateway.table.held(names))


@pytest.mark.parametrize("share_all", [False, True])
def test_another_tenant_s_key_sees_no_hit_unless_all_share(checkpoint: Path, tmp_path: Path, share_all: bool) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{tenant} sha256:{hashed(key)}\n" for tenant, key in KEYS.items()))
    workers = pair()
    with staged(checkpoint, workers, api_keys=str(keys), cache_share_all=share_all) as stage:
        workers[1].keeps = True  # the decode worker alone, from now on
        first = {"messages": [{"role": "user", "content": "Kept"}]}
        assert set(held(stage, "acme", **first)) == {"d0"}
        workers[1].keeps = False
        assert set(held(stage, "other", **first)) == ({"d0"} if share_all else set())
        assert held(stage, "acme", cache_salt="s", **first) == {}
