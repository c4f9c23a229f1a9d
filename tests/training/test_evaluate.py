"""Tests that evaluation over HTTP counts answers right, in whatever order they arrive."""

import json
from typing import Any

import httpx
import pytest

from training import cases
from training.corpus import Dialogue
from training.evaluate import Tally, over_http, with_ids

pytestmark = pytest.mark.process


def _answering(dialogues: list[Dialogue], wrong: str) -> httpx.MockTransport:
    """A fake cluster that gives each dialogue's next turn, and wrong ones for one kind."""
    said: dict[str, Any] = {}
    for dialogue in dialogues:
        for index, kind in cases.turns(dialogue):
            asked = json.dumps(with_ids(dialogue.messages[:index]))
            said[asked] = {"content": "no"} if kind == wrong else dialogue.messages[index]

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "nano"}]})
        message = said[json.dumps(json.loads(request.content)["messages"])]
        return httpx.Response(200, json={"choices": [{"message": message}]})

    return httpx.MockTransport(handle)


def test_each_kind_is_counted_by_itself() -> None:
    dialogues = list(cases.dialogues(4))
    tally = Tally()
    with httpx.Client(transport=_answering(dialogues, cases.ANSWERS), base_url="http://cluster") as client:
        over_http(client, iter(dialogues), tally, streams=4, strict=False)
    asked = [kind for d in dialogues for _, kind in cases.turns(d)]
    assert tally.asked[cases.ANSWERS] == asked.count(cases.ANSWERS) > 0
    assert tally.right[cases.ANSWERS] == 0
    assert tally.asked[cases.CALLS] == asked.count(cases.CALLS) + asked.count(cases.PARALLEL) > 0
    assert tally.right[cases.CALLS] == tally.asked[cases.CALLS]
    assert tally.right[cases.FACT] == tally.asked[cases.FACT] > 0
    assert len(tally.failures) == asked.count(cases.ANSWERS)
