"""A request's query, validated like a body."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.records import Page, R
from router.errors import invalid
from router.http.body import explain
from router.http.json import encode

Q = TypeVar("Q", bound=BaseModel)


class NoQuery(BaseModel):
    """Of paths without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_query(request: Request, model: type[Q]) -> Q:
    """400 naming a parameter that is unknown, twice there, or out of its values."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise invalid(f"'{name[:80]}' stands twice in the query", name[:80])
    try:
        return model.model_validate_strings(dict(request.query_params))
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0]) from None


def listed(items: Sequence[R], limit: int) -> Response:
    """A page of a list: `limit` items of one more where there are more."""
    page: Page[R] = {
        "object": "list",
        "data": items[:limit],
        "first_id": items[0]["id"] if items else None,
        "last_id": items[:limit][-1]["id"] if items else None,
        "has_more": len(items) > limit,
    }
    return json_response(page)


def json_response(content: Any) -> Response:
    """An answer of JSON."""
    return Response(encode(content), media_type="application/json")
