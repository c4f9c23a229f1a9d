"""Tests the limits of keys: token buckets, the file that sets them, and what clients see."""

import asyncio
import copy
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.keys import Holder, Keys, hashed, make_key
from router.access.limits import Account, Bucket, KeyLimits, Standing
from router.access.limits_headers import anthropic_headers, openai_headers
from tests.router.conftest import Stage, pair, served

KEY, OTHER = make_key(), make_key()
ASK: dict[str, Any] = {"model": "tiny", "prompt": [5, 6], "max_tokens": 4}


def test_a_bucket_fills_evenly_and_can_be_overdrawn() -> None:
    bucket = Bucket(60, 100.0)
    bucket.take(50, 100.0)
    assert bucket.level(100.0) == pytest.approx(10)
    assert bucket.level(105.0) == pytest.approx(15)
    assert bucket.wait_s(20, 105.0) == pytest.approx(5)
    bucket.take(25, 105.0)
    assert bucket.level(105.0) == pytest.approx(-10)
    assert bucket.wait_s(1, 105.0) == pytest.approx(11)
    assert bucket.level(1000.0) == 60
    bucket.take(-5, 1000.0)
    assert bucket.level(1000.0) == 60


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_admitted_requests_never_exceed_the_rate(asks: list[tuple[float, int]]) -> None:
    account, now, let = Account(KeyLimits(tokens=40), 0.0), 0.0, []
    for gap, tokens in asks:
        now += gap
        denied = account.charge(tokens, now)
        if denied is None:
            let.append((now, tokens))
        elif denied.wait_s is not None:  # after the wait it told, it would be let through
            assert copy.deepcopy(account).charge(tokens, now + denied.wait_s + 1e-6) is None
        else:
            assert tokens > 40
    for i, (begun, _) in enumerate(let):
        for j in range(i, len(let)):
            assert sum(t for _, t in let[i : j + 1]) <= 40 + (let[j][0] - begun) * 40 / 60 + 1e-6


def test_an_account_counts_requests_those_under_way_and_tokens() -> None:
    account = Account(KeyLimits(requests=2, tokens=100, concurrent=1), 0.0)
    assert account.enter(0.0) is None
    denied = account.enter(0.0)
    assert denied is not None
    assert "at most 1" in denied.message
    account.leave()
    assert account.enter(0.0) is None
    account.leave()
    denied = account.enter(0.0)
    assert denied is not None
    assert ("2 requests a minute" in denied.message, denied.wait_s) == (True, pytest.approx(30))
    too_much = account.charge(101, 0.0)
    assert too_much is not None
    assert too_much.wait_s is None
    assert account.charge(90, 0.0) is None
    account.settle(90, 200, 0.0)
    denied = account.enter(30.0)
    assert denied is not None
    assert ("tokens" in denied.message, denied.wait_s) == (True, pytest.approx(100 * 0.6 - 30 + 0.6))
    assert account.enter(61.0) is None


def test_changed_limits_keep_counting_running_requests() -> None:
    account = Account(KeyLimits(concurrent=2), 0.0)
    assert account.enter(0.0) is None
    account.change(KeyLimits(concurrent=1), 0.0)
    assert account.enter(0.0) is not None
    account.leave()
    assert account.running == 0


def test_headers_in_each_dialect() -> None:
    standing = [Standing("requests", 60, 59, 1.0), Standing("tokens", 5000, 0, 360.5), Standing("tokens", 1, 1, 0.0301)]
    said = {k.decode(): v.decode() for k, v in openai_headers(standing[:2])}
    assert said == {
        "x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "5000", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0.5s",
    }  # fmt: skip
    assert (b"x-ratelimit-reset-tokens", b"31ms") in openai_headers(standing[2:])
    said = {k.decode(): v.decode() for k, v in anthropic_headers(standing[:1], 1_700_000_000.2)}
    assert said["anthropic-ratelimit-requests-limit"] == "60"
    assert said["anthropic-ratelimit-requests-remaining"] == "59"
    reset = datetime.fromisoformat(said["anthropic-ratelimit-requests-reset"])
    assert reset == datetime.fromtimestamp(1_700_000_002, UTC)


def keys_file(folder: Path, *lines: str) -> Path:
    file = folder / "keys"
    file.write_text("\n".join(lines))
    return file


def holder(keys: Keys, key: str) -> Holder:
    found = keys.holder(key)
    assert found is not None
    return found


def test_keys_of_a_tenant_share_its_limits_unless_they_have_their_own(tmp_path: Path) -> None:
    third, fourth = make_key(), make_key()
    lines = [
        f"acme sha256:{hashed(KEY)}",
        f"acme sha256:{hashed(OTHER)}",
        f"acme sha256:{hashed(third)} requests=5",
        f"zeta sha256:{hashed(fourth)}",
        "acme limits requests=600 tokens=1000 concurrent=3",
    ]
    file = keys_file(tmp_path, *lines)
    keys = Keys(str(file), replicas=2)
    account = holder(keys, KEY).account
    assert account is not None
    assert account is holder(keys, OTHER).account
    assert account.limits == KeyLimits(300, 500, 2)
    own = holder(keys, third)
    assert own.account is not None
    assert (own.tenant, own.account.limits) == ("acme", KeyLimits(requests=3))
    assert holder(keys, fourth).account is None
    account.charge(400, 0.0)
    keys_file(tmp_path, *lines, "* limits tokens=10")
    assert holder(keys, KEY).account is account  # what was used stays used
    everybody = holder(keys, fourth).account
    assert everybody is not None
    assert everybody.limits == KeyLimits(tokens=5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("acme limits", "gives no limits"),
        ("acme limits requests=0", "requests=0"),
        ("acme limits request=1", "request=1"),
        ("acme limits requests=1 requests=2", "requests=2"),
        ("acme limits requests=-1", "must be"),
        ("acme limits requests=1\nacme limits requests=2", ":2 gives limits a second time"),
        (f"* sha256:{'0' * 64}", "must be"),
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Keys(str(keys_file(tmp_path, line)))


@asynccontextmanager
async def limited(checkpoint: Path, folder: Path, limits: str) -> AsyncIterator[tuple[Stage, httpx.AsyncClient]]:
    file = keys_file(folder, f"acme sha256:{hashed(KEY)} {limits}")
    async with (
        asyncio.timeout(120),
        served(checkpoint, pair(), api_keys=str(file), cors_origins=("https://a.example",)) as stage,
        stage.client(headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        yield stage, client


def test_requests_beyond_the_limit_are_a_429_that_says_when(checkpoint: Path, tmp_path: Path) -> None:
    async def act() -> None:
        async with limited(checkpoint, tmp_path, "requests=2 tokens=100") as (stage, client):
            first = await client.post("/v1/completions", json=ASK)
            assert first.status_code == 200, first.text
            used = first.json()["usage"]["total_tokens"]
            assert first.headers["x-ratelimit-limit-requests"] == "2"
            assert first.headers["x-ratelimit-remaining-requests"] == "1"
            assert int(first.headers["x-ratelimit-remaining-tokens"]) >= 100 - 6
            assert re.fullmatch(r"[\d.]+m?s", first.headers["x-ratelimit-reset-tokens"])
            second = await client.get("/v1/models")
            # What was charged beforehand and not used has come back.
            assert int(second.headers["x-ratelimit-remaining-tokens"]) >= 100 - used
            refused = await client.get("/v1/models")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 30
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert refused.headers["x-request-id"]
            there = await client.post("/v1/messages", json={})
            assert there.json()["error"]["type"] == "rate_limit_error"
            assert there.json()["request_id"] == there.headers["request-id"]
            assert there.headers["anthropic-ratelimit-requests-remaining"] == "0"
            assert "x-ratelimit-limit-requests" not in there.headers
            shown = (await client.get("/v1/models", headers={"origin": "https://a.example"})).headers
            assert "x-ratelimit-remaining-requests" in shown["access-control-expose-headers"]
            assert (await client.get("/ready")).status_code == 200
            assert stage.gateway.in_flight == 0

    asyncio.run(act())


def test_tokens_are_charged_for_the_longest_answer_and_settled_for_the_real_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    async def act() -> None:
        async with limited(checkpoint, tmp_path, "tokens=60") as (stage, client):
            stage["d0"].gate.clear()
            asking = asyncio.create_task(client.post("/v1/completions", json=ASK | {"n": 2, "max_tokens": 20}))
            await stage["d0"].until(lambda: len(stage["d0"].received) == 2)
            # Two prompt tokens and twice 20 are charged: no room for 30 more.
            denied = await client.post("/v1/completions", json=ASK | {"max_tokens": 28})
            assert denied.status_code == 429, denied.text
            assert denied.headers["retry-after"]
            assert len(stage["d0"].received) == 2
            never = await client.post("/v1/completions", json=ASK | {"max_tokens": 70})
            assert (never.status_code, never.json()["error"]["code"]) == (400, "rate_limit_too_small")
            assert never.json()["error"]["param"] == "max_tokens"
            stage["d0"].gate.set()
            used = (await asking).json()["usage"]["total_tokens"]
            left = int((await client.get("/v1/models")).headers["x-ratelimit-remaining-tokens"])
            assert 60 - used <= left <= 60

    asyncio.run(act())


def test_an_open_length_is_charged_a_little_and_owed_later(checkpoint: Path, tmp_path: Path) -> None:
    async def act() -> None:
        async with limited(checkpoint, tmp_path, "tokens=1100") as (stage, client):
            stage.workers["d0"].tokens_per_step = 64
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 50}], "ignore_eos": True}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.json()["usage"]["total_tokens"] == 1024
            left = int((await client.get("/v1/models")).headers["x-ratelimit-remaining-tokens"])
            assert 1100 - 1024 <= left < 1100 - 900

    asyncio.run(act())


def test_a_client_that_hangs_up_leaves_its_place(checkpoint: Path, tmp_path: Path) -> None:
    async def act() -> None:
        async with limited(checkpoint, tmp_path, "concurrent=1 tokens=100") as (stage, client):
            worker = stage["d0"]
            worker.pace_s = 0.002
            body = ASK | {"max_tokens": 90, "stream": True, "ignore_eos": True}
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                await anext(answer.aiter_bytes())
                busy = await client.get("/v1/models")
                assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
            await stage.until(lambda: stage.gateway.in_flight == 0 and not worker.running)
            free = await client.get("/v1/models")
            assert free.status_code == 200
            assert int(free.headers["x-ratelimit-remaining-tokens"]) > 100 - 92  # only what there was is charged

    asyncio.run(act())


def test_a_request_that_no_worker_took_is_not_charged(checkpoint: Path, tmp_path: Path) -> None:
    async def act() -> None:
        async with limited(checkpoint, tmp_path, "tokens=100") as (stage, client):
            await stage.gateway.update_workers([])
            assert (await client.post("/v1/completions", json=ASK)).status_code == 503
            assert (await client.get("/v1/models")).headers["x-ratelimit-remaining-tokens"] == "100"

    asyncio.run(act())
