"""Tests batches from upload to output, with restarts, failures and cancellations."""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path

import openai
import pytest

from router.access.keys import hashed, make_key
from router.batch import batches as batches_api
from router.batch import run, runner
from router.priority import BATCH
from tests.router.batching import CHAT, PLAIN, desk, line, lines
from tests.router.conftest import pair

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


@pytest.mark.parametrize("endpoint", [CHAT, PLAIN])
def test_a_batch_from_upload_to_output(checkpoint: Path, tmp_path: Path, endpoint: str) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            begun = await at.begin(lines(40, endpoint), endpoint, metadata={"night": "1"})
            assert (begun.status, begun.object, begun.model) == ("validating", "batch", "tiny")
            assert begun.expires_at == begun.created_at + 24 * 3600
            batch = await at.end(begun.id)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
            assert (batch.metadata, batch.error_file_id, batch.errors) == ({"night": "1"}, None, None)
            assert batch.in_progress_at
            assert batch.finalizing_at
            assert batch.completed_at
            assert batch.usage is not None
            assert batch.usage.output_tokens == 40 * 3
            output = await at.read(batch.output_file_id)
            assert [item["custom_id"] for item in output] == [f"r{i}" for i in range(40)]
            assert len({item["id"] for item in output}) == 40
            for item in output:
                assert (item["error"], item["response"]["status_code"]) == (None, 200)
                body = item["response"]["body"]
                assert body["object"] == ("chat.completion" if endpoint == CHAT else "text_completion")
                assert body["usage"]["completion_tokens"] == 3
            assert batch.output_file_id is not None
            file = await at.sdk.files.retrieve(batch.output_file_id)
            assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
            assert {r.priority for w in at.stage.workers.values() for r in w.received} == {BATCH}
            assert at.stage.gateway.in_flight == 0

    asyncio.run(play())


def test_a_line_s_answer_equals_a_live_request_s(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            batch = await at.end((await at.begin(line("same", n=2, seed=3, priority=-7))).id)
            (item,) = await at.read(batch.output_file_id)
            live = await at.sdk.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "same"}], max_tokens=3, temperature=0, n=2, seed=3
            )
            said = [choice["message"]["content"] for choice in item["response"]["body"]["choices"]]
            assert said == [choice.message.content for choice in live.choices]
            assert {r.priority for r in at.stage["d0"].received} == {BATCH - 7, 0}

    asyncio.run(play())


def test_lines_with_impossible_requests_are_in_the_error_file(checkpoint: Path, tmp_path: Path) -> None:
    bad = {
        "hot": {"temperature": 9}, "other": {"model": "gpt"}, "stream": {"stream": True}, "long": {"max_tokens": 9999},
        "late": {"priority": 101}, "odd": {"colour": "red"},
    }  # fmt: skip

    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            text = "\n\n".join([line("good"), *(line(name, **fields) for name, fields in bad.items()), line("fine")])
            batch = await at.end((await at.begin(text)).id)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            assert batch.request_counts.model_dump() == {"total": 8, "completed": 2, "failed": 6}
            assert [item["custom_id"] for item in await at.read(batch.output_file_id)] == ["good", "fine"]
            errors = await at.read(batch.error_file_id)
            assert [item["custom_id"] for item in errors] == list(bad)
            told = {item["custom_id"]: (item["response"]["status_code"], item["response"]["body"]) for item in errors}
            assert told["other"][0] == 404
            assert {status for name, (status, _) in told.items() if name != "other"} == {400}
            params = {name: body["error"]["param"] for name, (_, body) in told.items()}
            assert params == {
                "hot": "temperature", "other": "model", "stream": "stream", "long": "max_tokens", "late": "priority",
                "odd": "colour",
            }  # fmt: skip

    asyncio.run(play())


def test_an_input_that_is_none_fails_its_batch_with_the_lines_at_fault(checkpoint: Path, tmp_path: Path) -> None:
    text = "\n".join([line("a"), "{", line("a"), "", line("b", PLAIN)])

    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            batch = await at.end((await at.begin(text)).id)
            assert (batch.status, batch.output_file_id) == ("failed", None)
            assert batch.failed_at
            assert batch.errors is not None
            assert [(e.code, e.line, e.param) for e in batch.errors.data or []] == [
                ("invalid_json_line", 2, None), ("duplicate_custom_id", 3, "custom_id"), ("mismatched_url", 5, "url")
            ]  # fmt: skip
            assert not at.stage["d0"].received

    asyncio.run(play())


def test_cancelling_a_batch_frees_the_workers_and_keeps_finished_answers(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        workers = pair()
        async with desk(checkpoint, tmp_path, workers, batch_concurrency=4) as at:
            begun = await at.begin(lines(30, max_tokens=200))
            worker = at.stage["d0"]
            await at.until(begun.id, lambda b: b.request_counts is not None and b.request_counts.completed >= 3)
            worker.gate.clear()
            await worker.until(lambda: len(worker.running) == 4)
            under_way = set(worker.running)
            cancelled = await at.sdk.batches.cancel(begun.id)
            assert cancelled.status == "cancelling"
            await worker.until(lambda: under_way <= worker.aborted)
            batch = await at.end(begun.id)
            assert batch.status == "cancelled"
            assert batch.cancelled_at
            assert batch.cancelling_at
            output, errors = await at.read(batch.output_file_id), await at.read(batch.error_file_id)
            assert batch.request_counts is not None
            assert len(output) == batch.request_counts.completed >= 3
            assert {item["error"]["code"] for item in errors} == {"batch_cancelled"}
            assert {item["custom_id"] for item in output + errors} == {f"r{i}" for i in range(30)}
            assert len(output) + len(errors) == 30
            assert (await at.sdk.batches.cancel(begun.id)).status == "cancelled"
            worker.gate.set()
            assert (await at.end((await at.begin(lines(2))).id)).status == "completed"

    asyncio.run(play())


def test_a_batch_continues_after_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path, batch_concurrency=3) as at:
            begun = await at.begin(lines(30))
            await at.until(begun.id, lambda b: b.request_counts is not None and b.request_counts.completed >= 5)
            at.stage["d0"].gate.clear()
            await at.stage["d0"].until(lambda: len(at.stage["d0"].running) == 3)
            stopped = await at.sdk.batches.retrieve(begun.id)
            first = at.asked()
        assert stopped.request_counts is not None
        done = stopped.request_counts.completed
        assert 5 <= done < 30
        async with desk(checkpoint, tmp_path) as at:
            batch = await at.end(begun.id)
            assert batch.status == "completed"
            output = await at.read(batch.output_file_id)
            assert [item["custom_id"] for item in output] == [f"r{i}" for i in range(30)]
            assert batch.request_counts is not None
            assert batch.request_counts.completed == 30
            # Only those under way when it stopped were asked for twice.
            assert len(at.asked()) == 30 - done
            assert sorted(set(at.asked()) & set(first)) == sorted(first[done:])

    asyncio.run(play())


def test_two_routers_over_one_folder_run_each_line_once(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as one, desk(checkpoint, tmp_path) as two:
            begun = [await at.begin(lines(15)) for at in (one, two) for _ in range(3)]
            for batch in begun:
                ended = await two.end(batch.id)
                assert [i["custom_id"] for i in await one.read(ended.output_file_id)] == [f"r{i}" for i in range(15)]
            assert Counter(one.asked() + two.asked()) == {f"r{i}": 6 for i in range(15)}

    asyncio.run(play())


def test_a_router_of_another_model_leaves_a_batch_alone(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            at.stage["d0"].gate.clear()
            begun = await at.begin(lines(2))
            await at.stage["d0"].until(lambda: len(at.stage["d0"].received) == 2)
        with sqlite3.connect(tmp_path / "store.sqlite3") as db:
            db.execute("UPDATE batches SET model = 'other'")
        async with desk(checkpoint, tmp_path) as at:
            assert (await at.end((await at.begin(lines(2))).id)).status == "completed"
            assert (await at.sdk.batches.retrieve(begun.id)).status == "in_progress"

    asyncio.run(play())


def test_lines_not_answered_in_the_window_expire(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches_api._WINDOW_S, "24h", 0)

    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            batch = await at.end((await at.begin(lines(3))).id)
            assert (batch.status, batch.output_file_id) == ("expired", None)
            assert batch.expired_at
            errors = await at.read(batch.error_file_id)
            assert [(e["custom_id"], e["response"], e["error"]["code"]) for e in errors] == [
                (f"r{i}", None, "batch_expired") for i in range(3)
            ]

    asyncio.run(play())


def test_a_line_is_tried_again_where_a_worker_failed_and_given_up_in_the_end(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PAUSE_S", (0.001, 0.002))

    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            at.stage["p0"].refuse = "out of memory"
            batch = await at.end((await at.begin(line("poor"))).id)
            assert batch.status == "completed"
            (item,) = await at.read(batch.error_file_id)
            assert item["response"]["status_code"] == 500
            assert "out of memory" in item["response"]["body"]["error"]["message"]
            assert at.asked("p0") == ["poor"] * 5

    asyncio.run(play())


def test_without_workers_a_batch_waits_for_them(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            await at.stage.gateway.update_workers([])
            await at.stage.until(lambda: not any(at.stage.gateway.table.live().values()))
            begun = await at.begin(lines(3))
            await at.until(begun.id, lambda b: b.status == "in_progress")
            await at.stage.gateway.update_workers(at.stage.listed)
            assert (await at.end(begun.id)).status == "completed"

    asyncio.run(play())


def test_live_requests_are_admitted_while_a_batch_runs(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        workers = pair(slots=16)
        async with desk(checkpoint, tmp_path, workers, max_queue=1, first_token_timeout_s=60.0) as at:
            at.stage["d0"].gate.clear()
            begun = await at.begin(lines(40))
            room = 16 - 16 // 8
            await at.stage["d0"].until(lambda: len(at.stage["d0"].running) == room)
            live = asyncio.create_task(at.sdk.completions.create(model="tiny", prompt="live", max_tokens=2))
            await at.stage["d0"].until(lambda: len(at.stage["d0"].received) == room + 1)
            request = at.stage["d0"].received[-1]
            assert request.priority == 0
            at.stage["d0"].gate.set()
            assert (await live).choices[0].finish_reason == "length"
            assert (await at.end(begun.id)).status == "completed"
            metrics = (await at.sdk._client.get(f"{at.stage.url}/metrics")).text
            assert 'ling_ttft_seconds_count{class="normal"} 1.0' in metrics
            assert 'ling_ttft_seconds_count{class="batch"} 40.0' in metrics
            assert 'ling_batch_lines_total{status="200"} 40.0' in metrics

    asyncio.run(play())


def test_tenants_see_their_own(checkpoint: Path, tmp_path: Path) -> None:
    mine, theirs = make_key(), make_key()
    keys = tmp_path / "keys"
    keys.write_text(f"acme sha256:{hashed(mine)}\nother sha256:{hashed(theirs)}\n")

    async def play() -> None:
        async with desk(checkpoint, tmp_path / "data", key=mine, api_keys=str(keys)) as at:
            begun = await at.end((await at.begin(lines(2))).id)
            assert begun.output_file_id is not None
            other = at.sdk.with_options(api_key=theirs)
            for ask in (
                lambda: other.batches.retrieve(begun.id),
                lambda: other.batches.cancel(begun.id),
                lambda: other.files.retrieve(begun.input_file_id),
                lambda: other.files.content(begun.output_file_id or ""),
                lambda: other.files.delete(begun.input_file_id),
                lambda: other.batches.create(input_file_id=begun.input_file_id, endpoint=CHAT, completion_window="24h"),
            ):
                with pytest.raises(openai.NotFoundError):
                    await ask()
            assert [b.id async for b in other.batches.list()] == []
            assert [f.id async for f in other.files.list()] == []
            assert [b.id async for b in at.sdk.batches.list()] == [begun.id]
            assert {f.id async for f in at.sdk.files.list()} == {begun.input_file_id, begun.output_file_id}
            assert (await other.with_options(api_key=mine).batches.retrieve(begun.id)).id == begun.id
            # Nor does a batch begin from what another tenant's left.
            scopes = {r.prefix.scope for r in at.stage["p0"].received}
            await at.end((await at.begin(line("salted", cache_salt="s"))).id)
            await other.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "r0"}], max_tokens=1
            )
            salted, theirs_too = (r.prefix.scope for r in at.stage["p0"].received[-2:])
            assert len(scopes) == 1
            assert scopes.isdisjoint({salted, theirs_too, ""})
            assert salted != theirs_too

    asyncio.run(play())


def test_batches_are_listed_in_pages_newest_first(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            file_id = await at.upload(lines(1))
            made = [
                (await at.sdk.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")).id
                for _ in range(5)
            ]
            page = await at.sdk.batches.list(limit=2)
            assert ([b.id for b in page.data], page.has_more) == (made[:2:-1], True)
            assert [b.id async for b in page] == made[::-1]
            with pytest.raises(openai.BadRequestError, match="'after': there is no batch"):
                await at.sdk.batches.list(after="batch_none")
            for batch_id in made:
                await at.end(batch_id)

    asyncio.run(play())


REFUSED = (
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "1h"}, "completion_window"),
    ({"input_file_id": "file-none"}, "input_file_id"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
    ({"colour": "red"}, "colour"),
)


def test_an_impossible_batch_is_refused_by_its_field(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at, at.stage.client() as http:
            body = {"input_file_id": await at.upload(lines(1)), "endpoint": CHAT, "completion_window": "24h"}
            for fields, param in REFUSED:
                answer = await http.post("/v1/batches", json=body | fields)
                assert answer.status_code == (404 if param == "input_file_id" else 400)
                assert answer.json()["error"]["param"] == param
            assert (await at.sdk.batches.list()).data == []

    asyncio.run(play())


def test_a_runner_that_lost_its_lease_records_nothing_more(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LOOK_S", 0.01)

    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            worker = at.stage["d0"]
            worker.gate.clear()
            begun = await at.begin(lines(3))
            await worker.until(lambda: len(worker.running) == 3)
            under_way = set(worker.running)
            with sqlite3.connect(tmp_path / "store.sqlite3") as db:
                db.execute("UPDATE batches SET owner = 'another', owned_until = 1e12")
            await worker.until(lambda: under_way <= worker.aborted)
            worker.gate.set()
            with sqlite3.connect(tmp_path / "store.sqlite3") as db:  # the other one died
                db.execute("UPDATE batches SET owned_until = 0")
            batch = await at.end(begun.id)
            assert [i["custom_id"] for i in await at.read(batch.output_file_id)] == ["r0", "r1", "r2"]

    asyncio.run(play())
