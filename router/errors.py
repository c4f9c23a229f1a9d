"""Errors that a client sees, in the format of OpenAI's API."""

import math

from typing_extensions import TypedDict

from router.access.limits import Denied
from router.http.json import encode


class ErrorBody(TypedDict):
    """What went wrong. param: the field at fault. code: the error's name for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """The answer to a failed request, or the last event of a failed stream."""

    error: ErrorBody


class ApiError(Exception):
    """A failed request. `param` names the request's field at fault; `code` names the error for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        """The error's `type` in OpenAI's API."""
        if self.status >= 500:
            return "server_error"
        return {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")

    def payload(self) -> OpenAIError:
        """The JSON body before it is encoded."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The JSON body."""
        return encode(self.payload())


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """Make the 400 for a request that asks for something impossible."""
    return ApiError(400, message, param=param, code=code)


Path = tuple[str | int, ...]  # of a field in a request: names, and places in lists


def spelled(path: Path) -> str:
    """`("messages", 0, "content")` as `messages[0].content`, cut to 200 characters."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")[:200]


def fault(path: Path, reason: str, code: str = "invalid_value") -> ApiError:
    """Make the 400 for one field."""
    name = spelled(path)
    return invalid(f"'{name}': {reason}", name, code)


def store_lost() -> ApiError:
    """Make the 503 for a request that needs records which can't be reached; the log says more."""
    return ApiError(503, "the server's records can't be reached; try again", code="store_unavailable", retry_after_s=5)


def too_many(denied: Denied, length_field: str = "max_tokens") -> ApiError:
    """Make the 429 that says how long to wait; 400 if waiting would not help, as clients retry a 429 by themselves.

    length_field: the field of the request that bounds its answer.
    """
    if denied.wait_s is None:
        return ApiError(400, denied.message, param=length_field, code="rate_limit_too_small")
    wait = max(1, math.ceil(denied.wait_s))
    message = f"{denied.message}; try again in {wait} s"
    return ApiError(429, message, code="rate_limit_exceeded", retry_after_s=wait)
