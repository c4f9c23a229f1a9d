"""Tests docs/API.md: it is current, has all fields that clients know, and is true."""

import json
import typing
from pathlib import Path

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic.fields import FieldInfo

from router.endpoints import ENDPOINTS as ALL
from router.endpoints import Endpoint
from router.errors import ApiError
from router.http.body import parse
from router.openapi.fields import table

KNOWN = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsBase,
    "/v1/completions": completion_create_params.CompletionCreateParamsBase,
    "/v1/responses": response_create_params.ResponseCreateParamsBase,
    "/v1/messages": message_create_params.MessageCreateParamsBase,
    "/v1/messages/count_tokens": message_count_tokens_params.MessageCountTokensParams,
}
ENDPOINTS = [e for e in ALL if e.body is not None]
REFUSED = [(e, name) for e in ENDPOINTS for name in e.refused]


def fields(endpoint: Endpoint) -> dict[str, FieldInfo]:
    assert endpoint.body is not None
    return endpoint.body.model_fields


def test_the_document_is_current() -> None:
    document = (Path(__file__).parents[2] / "docs" / "API.md").read_text()
    assert document == table(), "run: python -m router.openapi.fields > docs/API.md"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.path)
def test_no_field_its_sdk_knows_is_missing(endpoint: Endpoint) -> None:
    if endpoint.path in KNOWN:
        assert set(typing.get_type_hints(KNOWN[endpoint.path])) <= set(fields(endpoint)) | set(endpoint.refused)
    assert not set(fields(endpoint)) & set(endpoint.refused)


@pytest.mark.parametrize(("endpoint", "name"), REFUSED, ids=[f"{e.path}-{n}" for e, n in REFUSED])
def test_fields_documented_as_refused_are_refused(endpoint: Endpoint, name: str) -> None:
    required = [n for n, f in fields(endpoint).items() if f.is_required()]
    values = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "input": "x"}
    body = {n: values[n] for n in required} | {name: {}}
    with pytest.raises(ApiError, match=f"'{name}' is not supported"):
        parse(json.dumps(body).encode(), endpoint.body)
