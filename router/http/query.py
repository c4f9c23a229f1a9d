"""Validates a request's query like a body."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.records import Page, R
from router.errors import invalid
from router.http.body import explain
from router.http.json import encode

Q = TypeVar("Q", bound=BaseModel)


class NoQuery(BaseModel):
    """The query of paths without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_query(request: Request, model: type[Q]) -> Q:
    """Validate the query; the 400 names a parameter that is unknown, repeated or invalid.

    A list is `a=1&a=2` or `a[]=1`.
    """
    content: dict[str, Any] = {}
    for given, value in request.query_params.multi_items():
        name = given.removesuffix("[]")
        if _is_list(model, name):
            content.setdefault(name, []).append(value)
        elif given in content:
            raise invalid(f"'{given[:80]}' stands twice in the query", given[:80])
        else:
            content[given] = value
    try:
        return model.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        raise explain({**details, "loc": details["loc"][:1]}) from None


def _is_list(model: type[BaseModel], name: str) -> bool:
    return name in model.model_fields and get_origin(model.model_fields[name].annotation) is list


def listed(items: Sequence[R], limit: int) -> Response:
    """Make one page of a list of at most `limit` items. items: one more than `limit` if there are more."""
    page: Page[R] = {
        "object": "list",
        "data": items[:limit],
        "first_id": items[0]["id"] if items else None,
        "last_id": items[:limit][-1]["id"] if items else None,
        "has_more": len(items) > limit,
    }
    return json_response(page)


def json_response(content: Any) -> Response:
    """Make an answer of JSON."""
    return Response(encode(content), media_type="application/json")
