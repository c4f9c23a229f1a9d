"""Errors a client sees, in the shape OpenAI's clients read."""

from typing import Any

import msgspec


class ApiError(Exception):
    """An answer other than success. `param` names the request field at fault, `code` is for programs."""

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
        """OpenAI's `type`."""
        if self.status >= 500:
            return "server_error"
        return {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")

    def payload(self) -> dict[str, Any]:
        """The JSON body, not yet encoded."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(self.payload())


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """The request asks for something that can't be: 400."""
    return ApiError(400, message, param=param, code=code)
