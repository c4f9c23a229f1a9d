"""Turns the bytes of a body into a validated request, or an `ApiError` that names the fault."""

import asyncio
import io
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.types import Receive, Scope

from router.config import RouterConfig
from router.errors import ApiError, invalid, spelled
from router.http.encodings import DECODERS, DecodeError, decode

_ENCODING = b"content-encoding"
R = TypeVar("R", bound=BaseModel)


class ClientGone(Exception):
    """The client disconnected before its request was complete."""


async def read_body(scope: Scope, receive: Receive, config: RouterConfig) -> bytes:
    """Read the whole body. 413 as soon as it is known to be too big; 408 if it does not arrive in time."""
    limit = config.max_body_bytes
    too_big = ApiError(413, f"the body exceeds {limit} bytes", code="body_too_large")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_big
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(config.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise too_big
                parts.append(part)
                if not message.get("more_body", False):
                    return await _decoded(b"".join(parts), scope, limit)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {config.body_timeout_s:g} s", code="body_timeout"
        ) from None


async def _decoded(body: bytes, scope: Scope, limit: int) -> bytes:
    """Decode the body's content-encoding; 413 if it becomes longer than `limit`."""
    encoding = encoding_of(scope)
    if encoding is None:
        return body
    try:
        decoded = await asyncio.to_thread(decode, io.BytesIO(body), encoding, limit)
    except DecodeError as error:
        raise undecodable(encoding, error) from None
    if len(decoded) > limit:
        raise ApiError(413, f"the body exceeds {limit} bytes when it is decoded", code="body_too_large")
    return decoded


def encoding_of(scope: Scope) -> str | None:
    """The body's content-encoding, if it has one; 415 for one that can't be read."""
    encodings: list[str] = [
        value.decode("latin-1").strip().lower() for name, value in scope["headers"] if name == _ENCODING
    ]
    if encodings in ([], ["identity"], [""]):
        return None
    if len(encodings) > 1 or encodings[0] not in DECODERS:
        message = f"content-encoding {', '.join(encodings)[:80]!r} can't be read: send one of {', '.join(DECODERS)}"
        raise ApiError(415, message, param="content-encoding", code="unsupported_encoding")
    return encodings[0]


def undecodable(encoding: str, error: DecodeError) -> ApiError:
    """Make the 400 for a body that is not in its content-encoding."""
    return invalid(f"the body is not {encoding}: {error}", code="invalid_encoding")


def parse(body: bytes, model: type[R]) -> R:
    """Parse and validate a body."""
    try:
        content = from_json(body)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise invalid("the body nests objects and lists deeper than 200 levels", code="json_too_deep") from None
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    return check(content, model)


def check(content: dict[str, Any], model: type[R]) -> R:
    """Validate the content of a JSON body."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0]) from None


def explain(error: ErrorDetails) -> ApiError:
    """Make the 400 that names the field at fault, from pydantic's error."""
    path = list(error["loc"])
    if path[:1] == ["messages"] and len(path) > 2:
        del path[2]  # the role that pydantic adds to tell messages apart; the client's path lacks it
    path = [p for p in path if not (isinstance(p, str) and p.startswith("#"))]  # a block's type that pydantic adds
    name = spelled(tuple(path))
    message, code = f"'{name}': {error['msg']}", "invalid_value"
    match error["type"]:
        case "missing":
            message, code = f"'{name}' is required", "missing_required_parameter"
        case "extra_forbidden":
            message, code = f"'{name}' is not supported", "unsupported_parameter"
        case "value_error":
            reason = str(error["ctx"]["error"])
            message = f"'{name}': {reason}" if name else reason
        case "literal_error":
            given = str(error["input"])[:80]
            message, code = f"'{name}' {given!r} is not supported: {error['msg']}", "unsupported_value"
        case "union_tag_invalid":
            name += _tag(error)
            tags = error["ctx"]["expected_tags"].replace("#", "").split(", ")
            expected = ", ".join(tag for tag in tags if "(" not in tag)  # without those that are no value of the field
            message, code = f"'{name}' must be one of {expected}", "unsupported_value"
        case "union_tag_not_found":
            name += _tag(error)
            message, code = f"'{name}' is required", "missing_required_parameter"
    return invalid(message, name or None, code)


def _tag(error: ErrorDetails) -> str:
    return ".role" if error["ctx"]["discriminator"] == "'role'" else ".type"
