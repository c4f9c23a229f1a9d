"""Tests batches of requests to the responses API."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response

from router.priority import BATCH
from tests.router.batching import desk

PATH = "/v1/responses"
BAD: dict[str, dict[str, Any]] = {
    "store": {"store": True},
    "background": {"background": True},
    "previous_response_id": {"previous_response_id": "resp_1"},
    "truncation": {"truncation": "auto"},
    "stream": {"stream": True},
    "tools[0].type": {"tools": [{"type": "teleport"}]},
}


def line(name: str, **fields: Any) -> str:
    body = {"model": "tiny", "max_output_tokens": 3, "temperature": 0, "input": name, **fields}
    return json.dumps({"custom_id": name, "method": "POST", "url": PATH, "body": body})


@pytest.mark.timeout(60)
def test_each_line_is_a_response(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            text = "\n".join([line("one"), line("two"), *(line(name, **change) for name, change in BAD.items())])
            batch = await at.end((await at.begin(text, PATH)).id)
            output = await at.read(batch.output_file_id)
            assert [item["custom_id"] for item in output] == ["one", "two"]
            for item in output:
                answer = Response.model_validate(item["response"]["body"], strict=True)
                assert (answer.status, answer.usage and answer.usage.output_tokens) == ("incomplete", 3)
                assert item["response"]["body"]["store"] is False
            errors = {
                item["custom_id"]: item["response"]["body"]["error"] for item in await at.read(batch.error_file_id)
            }
            assert {name: error["param"] for name, error in errors.items()} == {name: name for name in BAD}
            assert {r.priority for w in at.stage.workers.values() for r in w.received} == {BATCH}
            live = await at.sdk.responses.create(model="tiny", input="one", max_output_tokens=3, temperature=0)
            assert live.status == "incomplete"

    asyncio.run(play())
