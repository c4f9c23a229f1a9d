"""Each API's formats of errors and of limit headers."""

from collections.abc import Sequence
from typing import Protocol

from router.access.limits import Standing
from router.access.limits_headers import Headers, anthropic_headers, openai_headers
from router.api.answers.anthropic import AnthropicError, AnthropicFault
from router.errors import ApiError
from router.http.json import encode

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Dialect(Protocol):
    """One API's formats. id_header: the header that carries the request's id."""

    id_header: bytes

    def body(self, error: ApiError, request_id: str | None) -> bytes:
        """The body of an error."""

    def limit_headers(self, standing: Sequence[Standing], clock: float) -> Headers:
        """The headers that state what a key has left. clock: Unix time in seconds."""


class OpenAI:
    """`{"error": {"message", "type", "param", "code"}}`."""

    id_header = b"x-request-id"

    def body(self, error: ApiError, request_id: str | None) -> bytes:
        """The error alone; the request's id is in the headers only."""
        return error.body()

    def limit_headers(self, standing: Sequence[Standing], clock: float) -> Headers:
        """`x-ratelimit-*`."""
        return openai_headers(standing)


class Anthropic:
    """`{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}`."""

    id_header = b"request-id"

    def body(self, error: ApiError, request_id: str | None) -> bytes:
        """The error, whose `type` follows from the status, and the request's id."""
        kind = _KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        fault: AnthropicFault = {"type": kind, "message": error.message}
        if error.code is not None:
            fault["details"] = {"error_code": error.code}
        content: AnthropicError = {"type": "error", "error": fault, "request_id": request_id}
        return encode(content)

    def limit_headers(self, standing: Sequence[Standing], clock: float) -> Headers:
        """`anthropic-ratelimit-*`."""
        return anthropic_headers(standing, clock)


OPENAI = OpenAI()
ANTHROPIC = Anthropic()


def dialect_of(path: str) -> Dialect:
    """The dialect of the API that a path belongs to."""
    return ANTHROPIC if path == "/v1/messages" or path.startswith("/v1/messages/") else OPENAI
