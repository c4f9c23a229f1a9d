"""Tests sessions over HTTP: names, leases, quotas, and the messages to workers."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.access.keys import hashed, make_key
from router.relay.link import ListedWorker
from tests.router.conftest import Stage, pair, served, staged
from tests.router.fake_worker import FakeWorker

pytestmark = pytest.mark.process
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def keeping() -> list[FakeWorker]:
    workers = pair()
    for worker in workers:
        worker.keeps = True
    return workers


@pytest.fixture(scope="module")
def stage(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(checkpoint, keeping(), data_dir=str(tmp_path_factory.mktemp("data")), max_sessions=40) as started:
        yield started


def ask(stage: Stage, name: str, path: str = CHAT, **more: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": "auto", "max_tokens": 4, "seed": 1, "session_id": name, **more}
    if path == TEXT:
        body.setdefault("prompt", "Once")
    else:
        body.setdefault("messages", [{"role": "user", "content": "Once"}])
    return stage.http.post(stage.url + path, json=body)


def session(stage: Stage, name: str) -> Any:
    return stage.http.get(f"{stage.url}/v1/sessions/{name}").json()


def act(stage: Stage, name: str, what: str, **body: Any) -> httpx.Response:
    return stage.http.post(f"{stage.url}/v1/sessions/{name}/{what}", json=body or None)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_every_dialect_names_its_session(stage: Stage) -> None:
    bodies: dict[str, dict[str, Any]] = {
        TEXT: {"prompt": "Hi", "max_tokens": 3},
        CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 3},
        "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    }
    for n, (path, body) in enumerate(bodies.items()):
        named = {"model": "auto", **body}
        by_field = stage.http.post(stage.url + path, json={**named, "session_id": f"dialect-{n}"})
        by_header = stage.http.post(stage.url + path, json=named, headers={"x-ling-session": f"dialect-{n}-h"})
        assert (by_field.status_code, by_header.status_code) == (200, 200), by_field.text + by_header.text
        for name, answer in ((f"dialect-{n}", by_field), (f"dialect-{n}-h", by_header)):
            found = session(stage, name)
            assert found["last_request"] == answer.headers["x-request-id"]
            assert (found["tier"], found["kept_tokens"]) == ("device", found["tokens"] - 1)
            stage.http.delete(f"{stage.url}/v1/sessions/{name}")


def test_a_streamed_request_s_session_is_stored_before_the_stream_ends(stage: Stage) -> None:
    for turn in range(3):
        answer = ask(stage, "streamed", TEXT, prompt="Once" * (turn + 1), stream=True)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert session(stage, "streamed")["tokens"] == 4 * (turn + 1) + 4


def test_a_session_is_parked_resumed_forked_and_forgotten(stage: Stage) -> None:
    assert ask(stage, "trip").status_code == 200
    decode = stage["d0"]
    made = session(stage, "trip")
    assert made["parent"] is None
    assert made["expires_at"] - made["created_at"] >= 3600

    parked = act(stage, "trip", "park")
    assert (parked.status_code, parked.json()["tier"]) == (200, "host")
    resumed = act(stage, "trip", "resume")
    assert (resumed.status_code, resumed.json()["tier"]) == (200, "device")
    assert decode.received[-1].warm

    forks = act(stage, "trip", "fork", ids=["trip-a", "trip-b"]).json()["data"]
    assert [f["id"] for f in forks] == ["trip-a", "trip-b"]
    assert all((f["tokens"], f["parent"], f["tier"]) == (made["tokens"], "trip", "device") for f in forks)

    assert stage.http.delete(f"{stage.url}/v1/sessions/trip").json() == {
        "id": "trip",
        "object": "session",
        "deleted": True,
    }
    assert code(act(stage, "trip", "park")) == (404, "session_not_found")
    assert session(stage, "trip-a")["tier"] == "device"


def test_workers_pin_the_end_of_a_session(checkpoint: Path) -> None:
    async def act_(stage: Stage) -> None:
        decode = stage["d0"]
        async with stage.client() as client:
            body = {"model": "auto", "prompt": "Once", "max_tokens": 4, "seed": 1, "session_id": "s"}
            await client.post(TEXT, json=body)
            await decode.until(lambda: len(decode.pins) == 1)
            (first,) = decode.pins.values()
            await client.post(TEXT, json=body | {"prompt": "Once more"})
            await decode.until(lambda: list(decode.pins.values()) != [first])
            await client.post("/v1/sessions/s/fork", json={"ids": ["t"]})
            await decode.until(lambda: len(decode.pins) == 2)
            assert len(set(decode.pins.values())) == 1
            await client.delete("/v1/sessions/s")
            await decode.until(lambda: len(decode.pins) == 1)

    alone(checkpoint, act_)


def test_sessions_are_pinned_again_at_a_worker_that_starts_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act_(stage: Stage) -> None:
        ended = stage["d0"]
        async with stage.client() as client:
            body = {"model": "auto", "max_tokens": 4, "seed": 1}
            for name in ("old", "gone", "s"):
                await client.post(TEXT, json={**body, "prompt": name, "session_id": name})
            await client.post("/v1/sessions/s/fork", json={"ids": ["fork"]})
            await client.post(TEXT, json={**body, "prompt": "s goes on", "session_id": "s"})
            await ended.until(lambda: len(ended.pins) == 4)
            await ended.die()
            pinned = dict(ended.pins)
            await client.delete("/v1/sessions/gone")
            begun = FakeWorker("d1", "decode")
            begun.tiers = dict.fromkeys(ended.tiers, "disk")
            monkeypatch.setattr("router.relay.sessions._READ", 1)
            await begun.start()
            try:
                await stage.gateway.update_workers([*stage.listed[:1], ListedWorker(begun.ref, "decode")])
                await begun.until(lambda: len(begun.pins) == 3)
                assert begun.pins.items() <= pinned.items()
                assert (await client.get("/v1/sessions/s")).json()["tier"] == "disk"
                await client.delete("/v1/sessions/s")
                await begun.until(lambda: len(begun.pins) == 2)
            finally:
                await begun.die()

    alone(checkpoint, act_)


def alone(checkpoint: Path, act_: Callable[[Stage], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(120), served(checkpoint, keeping(), **options) as stage:
            await act_(stage)

    asyncio.run(run())


def test_whatever_is_asked_at_once_has_its_answer_and_leaves_nothing(checkpoint: Path) -> None:
    async def act_(stage: Stage) -> None:
        decode, luck = stage["d0"], random.Random(3)
        async with stage.client() as client:

            async def one(name: str, what: str) -> tuple[str, int]:
                path = f"/v1/sessions/{name}"
                if what == "turn":
                    body = {"model": "auto", "prompt": f"{name} {luck.random()}", "max_tokens": 3, "session_id": name}
                    answer = await client.post(TEXT, json=body)
                elif what in ("GET", "DELETE"):
                    answer = await client.request(what, path)
                else:
                    sent = {"ids": [f"fork{luck.randrange(4)}"]} if what == "fork" else None
                    answer = await client.post(f"{path}/{what}", json=sent)
                return what, answer.status_code

            acts = ("turn", "turn", "park", "resume", "resume", "fork", "GET", "DELETE")
            names = ("a", "b", *(f"fork{n}" for n in range(4)))
            for _ in range(12):
                asked = [one(luck.choice(names), luck.choice(acts)) for _ in range(16)]
                for what, status in await asyncio.gather(*asked):
                    assert status in (200, 409) if what == "turn" else (200, 404, 409), what
            there = {s["id"] for s in (await client.get("/v1/sessions?limit=100")).json()["data"]}
            # None is held by a request that is over, and each that is left has its pin, and no other.
            for name in there:
                assert (await one(name, "turn"))[1] == 200
            await decode.until(lambda: len(decode.pins) == len(there))
            assert (
                await client.post(TEXT, json={"model": "auto", "prompt": "x", "session_id": "new"})
            ).status_code == 200

    alone(checkpoint, act_)


@pytest.mark.parametrize("name", ["..%2f", "%00", "%F0%9F%98%80", "a%20b", "a%0d%0ab", "%ff", "x" * 129])
def test_what_can_not_be_a_name_is_not_there(stage: Stage, name: str) -> None:
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("POST", "/park"), ("POST", "/resume"), ("POST", "/replay"), ("GET", "/snapshot"),
    ):  # fmt: skip
        answer = stage.http.request(method, f"{stage.url}/v1/sessions/{name}{path}")
        assert answer.status_code == 404
    made = stage.http.post(f"{stage.url}/v1/sessions/{name}/snapshot", content=b"")
    assert made.status_code in (400, 404)
    assert "cut short" not in made.text


def test_a_session_that_no_worker_keeps_says_so_and_is_computed_again(stage: Stage) -> None:
    ask(stage, "lost", TEXT, prompt="Lost in memory")
    decode, prefill = stage["d0"], stage["p0"]
    for worker in (decode, prefill):
        for digest in list(worker.tiers):
            worker.put(1, digest, None)
    # The next answer's message brings the events.
    ask(stage, "other", TEXT)
    found = session(stage, "lost")
    assert (found["tier"], found["kept_tokens"], found["bytes"]) == (None, 0, 0)
    assert act(stage, "lost", "park").status_code == 200  # there is nothing to take off
    assert act(stage, "lost", "resume").json()["tier"] == "device"


def test_a_worker_without_lower_tiers_can_not_park(stage: Stage) -> None:
    ask(stage, "heavy")
    for worker in stage.workers.values():
        worker.host = False
    answer = act(stage, "heavy", "park")
    assert code(answer) == (400, "session_not_parked")
    assert "below the device" in answer.json()["error"]["message"]
    for worker in stage.workers.values():
        worker.host = True


def test_one_request_at_a_time(checkpoint: Path) -> None:
    async def act_(stage: Stage) -> None:
        decode = stage["d0"]
        async with stage.client() as client:
            body = {"model": "auto", "prompt": "Once", "max_tokens": 4, "session_id": "s"}
            await client.post(TEXT, json=body)
            decode.gate.clear()
            before = len(decode.received)
            running = asyncio.create_task(client.post(TEXT, json=body | {"prompt": "Twice"}))
            await decode.until(lambda: len(decode.received) > before)
            for method, path, sent in (
                ("POST", TEXT, body),
                ("POST", "/v1/sessions/s/resume", None),
                ("POST", "/v1/sessions/s/park", None),
                ("DELETE", "/v1/sessions/s", None),
            ):
                answer = await client.request(method, path, json=sent)
                assert code(answer) == (409, "session_busy"), (method, path)
            # A fork begins where the last answer ended.
            fork = (await client.post("/v1/sessions/s/fork", json={"ids": ["t"]})).json()["data"][0]
            assert fork["tokens"] == 8
            decode.gate.set()
            assert (await running).status_code == 200
            assert (await client.get("/v1/sessions/s")).json()["tokens"] == 9

    alone(checkpoint, act_)


@pytest.mark.parametrize("fails", ["client leaves", "worker refuses"])
def test_a_request_that_fails_changes_nothing(checkpoint: Path, fails: str) -> None:
    async def act_(stage: Stage) -> None:
        decode = stage["d0"]
        async with stage.client() as client:
            body = {"model": "auto", "prompt": "Once", "max_tokens": 4}
            await client.post(TEXT, json=body | {"session_id": "old"})
            stood = (await client.get("/v1/sessions/old")).json()
            for name in ("old", "new"):
                wanted = body | {"session_id": name, "prompt": "Once more"}
                if fails == "client leaves":
                    before = len(decode.received)
                    decode.gate.clear()
                    task = asyncio.create_task(client.post(TEXT, json=wanted))
                    await decode.until(lambda n=before: len(decode.received) > n)  # type: ignore[misc]
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    decode.gate.set()
                else:
                    decode.refuse, decode.refusals = "no", 1
                    assert (await client.post(TEXT, json=wanted)).status_code == 500
            while (again := await client.post("/v1/sessions/old/park")).status_code == 409:
                await asyncio.sleep(0.01)
            assert again.json() | {"tier": "device"} == stood
            assert (await client.get("/v1/sessions/new")).status_code == 404

    alone(checkpoint, act_)


def test_sessions_are_listed_in_pages_newest_first(checkpoint: Path) -> None:
    with staged(checkpoint, keeping()) as stage:
        for n in range(5):
            ask(stage, f"s{n}", TEXT)
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = stage.http.get(f"{stage.url}/v1/sessions", params=query).json()
            seen += [one["id"] for one in page["data"]]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        assert seen == ["s4", "s3", "s2", "s1", "s0"]


def test_a_full_quota_is_refused_before_anything_is_computed(checkpoint: Path) -> None:
    with staged(checkpoint, keeping(), max_sessions=2) as stage:
        ask(stage, "a", TEXT)
        ask(stage, "b", TEXT)
        asked = len(stage["d0"].received)
        assert code(ask(stage, "c", TEXT)) == (403, "session_quota_exceeded")
        assert code(act(stage, "a", "fork", ids=["d"])) == (403, "session_quota_exceeded")
        assert len(stage["d0"].received) == asked
        assert ask(stage, "a", TEXT).status_code == 200


def test_a_session_ends_by_itself(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged(checkpoint, keeping(), session_ttl_s=50) as stage:
        ask(stage, "short", TEXT)
        assert session(stage, "short")["id"] == "short"
        later = time.time() + 60
        monkeypatch.setattr("router.relay.sessions.now", lambda: int(later))
        assert code(act(stage, "short", "park")) == (404, "session_not_found")


def test_other_tenants_sessions_are_not_there(checkpoint: Path, tmp_path: Path) -> None:
    keys = {}
    lines = []
    for tenant in ("ann", "bob"):
        keys[tenant] = make_key()
        lines.append(f"{tenant} sha256:{hashed(keys[tenant])}")
    (tmp_path / "keys").write_text("\n".join(lines) + "\n")
    with staged(checkpoint, keeping(), api_keys=str(tmp_path / "keys")) as stage:

        def call(tenant: str, method: str, path: str, **more: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {keys[tenant]}"}
            return stage.http.request(method, stage.url + path, headers=headers, **more)

        body = {"model": "auto", "prompt": "Once", "max_tokens": 4, "session_id": "mine"}
        assert call("ann", "POST", TEXT, json=body).status_code == 200
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/park"),
            ("POST", "/resume"),
            ("POST", "/fork"),
        ):
            sent = {"json": {"ids": ["x"]}} if path == "/fork" else {}
            assert code(call("bob", method, f"/v1/sessions/mine{path}", **sent)) == (404, "session_not_found")
        assert call("bob", "GET", "/v1/sessions").json()["data"] == []
        # The same name is another session for another tenant, and nothing of the first one is shared with it.
        assert call("bob", "POST", TEXT, json=body).status_code == 200
        assert len({r.prefix.scope for r in stage["p0"].received}) == 2


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"session_id": ""}, "session_id"),
        ({"session_id": "a/b"}, "session_id"),
        ({"session_id": "x" * 129}, "session_id"),
        ({"session_id": "."}, "session_id"),
        ({"session_id": ".."}, "session_id"),
        ({"session_id": "a\n"}, "session_id"),
        ({"n": 2}, "session_id"),
        ({"prompt": ["a", "b"]}, "session_id"),
    ],
)
def test_requests_that_no_session_allows_are_refused(stage: Stage, more: dict[str, Any], param: str) -> None:
    answer = ask(stage, "fine", TEXT, **more)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_header_and_field_that_differ_are_refused(stage: Stage) -> None:
    body = {"model": "auto", "prompt": "a", "max_tokens": 1, "session_id": "one"}
    answer = stage.http.post(stage.url + TEXT, json=body, headers={"x-ling-session": "two"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-ling-session")
    for name in ("no/name", ".."):
        answer = stage.http.post(stage.url + TEXT, json=body, headers={"x-ling-session": name})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-ling-session")


def test_a_file_makes_no_session_that_could_not_be_asked_for(stage: Stage) -> None:
    ask(stage, "to-file", TEXT)
    file = stage.http.get(f"{stage.url}/v1/sessions/to-file/snapshot").content
    for name in ("a%20b", "%2e%2e", "x" * 129):
        answer = stage.http.post(f"{stage.url}/v1/sessions/{name}/snapshot", content=file)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "session_id")


@pytest.mark.parametrize("ids", [[], ["a", "a"], ["with space"], None, ["there"]])
def test_impossible_forks_are_refused(stage: Stage, ids: list[str] | None) -> None:
    ask(stage, "there", TEXT)
    answer = act(stage, "there", "fork", **({} if ids is None else {"ids": ids}))
    assert answer.status_code == (409 if ids == ["there"] else 400)


@pytest.mark.parametrize("records", ["files", "database"])
def test_records_that_can_not_be_reached_are_a_503(checkpoint: Path, tmp_path: Path, records: str) -> None:
    lost = {"data_dir": str(tmp_path)}
    if records == "database":
        lost["database_url"] = "postgresql://u:p@127.0.0.1:1/db"
    for name in ("sessions.sqlite3", "store.sqlite3"):
        (tmp_path / name).mkdir()  # so that it can't be a file

    async def act_(stage: Stage) -> None:
        async with stage.client() as client:
            body = {"model": "auto", "prompt": "Once", "max_tokens": 1}
            assert code(await client.post(TEXT, json=body | {"session_id": "s"})) == (503, "store_unavailable")
            assert code(await client.get("/v1/sessions/s")) == (503, "store_unavailable")
            assert code(await client.get("/v1/batches")) == (503, "store_unavailable")
            assert (await client.post(TEXT, json=body)).status_code == 200

    alone(checkpoint, act_, **lost)
