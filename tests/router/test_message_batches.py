"""Tests Anthropic's message batches by its SDK, with the store and the runner of /v1/batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.router.conftest import Stage, pair, staged


@pytest.fixture(scope="module")
def keeping(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(checkpoint, pair(), data_dir=str(tmp_path_factory.mktemp("data"))) as stage:
        yield stage


@pytest.fixture(scope="module")
def sdk(keeping: Stage) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=keeping.url, api_key="-", max_retries=0) as client:
        yield client


def entry(name: str, **more: Any) -> Any:
    params = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": name}]}
    return {"custom_id": name, "params": params | more}


def ended(sdk: anthropic.Anthropic, batch_id: str) -> Any:
    while (batch := sdk.messages.batches.retrieve(batch_id)).processing_status != "ended":
        assert batch.request_counts.processing > 0
    return batch


def test_each_request_gets_its_result(sdk: anthropic.Anthropic) -> None:
    begun = sdk.messages.batches.create(requests=[entry("a"), entry("b"), entry("bad", temperature=9)])
    assert (begun.type, begun.processing_status, begun.request_counts.processing) == ("message_batch", "in_progress", 3)
    batch = ended(sdk, begun.id)
    counts = batch.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 2, 1)
    assert batch.ended_at is not None
    assert batch.results_url.endswith(f"/v1/messages/batches/{batch.id}/results")
    results = {result.custom_id: result.result for result in sdk.messages.batches.results(batch.id)}
    assert {name: result.type for name, result in results.items()} == {
        "a": "succeeded",
        "b": "succeeded",
        "bad": "errored",
    }
    assert results["a"].type == "succeeded"
    assert results["a"].message.stop_reason == "max_tokens"
    assert results["bad"].type == "errored"
    assert results["bad"].error.error.type == "invalid_request_error"
    assert "'temperature'" in results["bad"].error.error.message


def test_lists_are_paged_both_ways_and_hold_no_other_api_s(sdk: anthropic.Anthropic, keeping: Stage) -> None:
    made = [sdk.messages.batches.create(requests=[entry(f"p{i}")]).id for i in range(3)]
    first = sdk.messages.batches.list(limit=2)
    assert [b.id for b in first.data] == [made[2], made[1]]
    assert first.has_more
    assert sdk.messages.batches.list(limit=2, after_id=made[1]).data[0].id == made[0]
    newer = sdk.messages.batches.list(limit=1, before_id=made[0])
    assert ([b.id for b in newer.data], newer.has_more) == ([made[1]], True)
    listed = keeping.http.get(f"{keeping.url}/v1/batches").json()["data"]
    assert not {b["id"] for b in listed} & set(made)


def test_a_finished_batch_can_be_deleted(sdk: anthropic.Anthropic) -> None:
    batch = sdk.messages.batches.create(requests=[entry("gone")])
    ended(sdk, batch.id)
    assert sdk.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.batches.retrieve(batch.id)


def test_a_cancelled_message_batch_reports_all_requests(checkpoint: Path, tmp_path: Path) -> None:
    workers = pair(pace_s=0.05)
    with (
        staged(checkpoint, workers, data_dir=str(tmp_path), batch_concurrency=1) as stage,
        anthropic.Anthropic(base_url=stage.url, api_key="-", max_retries=0) as client,
    ):
        batch = client.messages.batches.create(requests=[entry(f"c{i}", max_tokens=200) for i in range(4)])
        early = stage.http.get(f"{stage.url}/v1/messages/batches/{batch.id}/results")
        assert (early.status_code, early.json()["error"]["details"]["error_code"]) == (400, "batch_not_ended")
        cancelled = client.messages.batches.cancel(batch.id)
        assert cancelled.processing_status in ("canceling", "ended")
        assert cancelled.cancel_initiated_at is not None
        counts = ended(client, batch.id).request_counts
        assert counts.canceled + counts.succeeded == 4
        assert counts.canceled > 0
        kinds = [result.result.type for result in client.messages.batches.results(batch.id)]
        assert kinds.count("canceled") == counts.canceled


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "'requests'"),
        ([entry("x"), entry("x")], "'requests[1].custom_id'"),
        ([entry("x") | {"custom_id": "a b"}], "'requests[0].custom_id'"),
        ([{"custom_id": "x"}], "'requests[0].params' is required"),
    ],
    ids=["none", "twice", "odd id", "no params"],
)
def test_a_bad_batch_is_named_in_this_dialect(keeping: Stage, requests: list[Any], words: str) -> None:
    answer = keeping.http.post(f"{keeping.url}/v1/messages/batches", json={"requests": requests})
    assert (answer.status_code, answer.json()["type"]) == (400, "error")
    assert words in answer.json()["error"]["message"]
