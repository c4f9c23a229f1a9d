"""The response object of a response in progress."""

from router.api.responses.answers import Failure, Response
from router.api.responses.schema import ResponseRequest
from router.api.responses.tools import shown as shown_tools
from router.errors import ApiError

_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
STATUSES = {code: status for status, code in _ERROR_CODES.items()}


def resource(request: ResponseRequest, response_id: str, created: int, model: str) -> Response:
    """The response before its first output. created: Unix time in seconds."""
    text, reasoning, choice = request.text, request.reasoning, request.tool_choice
    shown = text.format.model_dump(by_alias=True) if text is not None and text.format is not None else {"type": "text"}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "background": request.background,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata,
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "safety_identifier": request.safety_identifier,
        "store": request.store,
        "temperature": request.temperature,
        "top_logprobs": request.top_logprobs,
        "top_p": request.top_p,
        "truncation": request.truncation,
        "user": request.user,
        "reasoning": {"effort": reasoning.effort if reasoning is not None else None, "summary": None},
        "service_tier": "default",
        "text": {"format": shown, "verbosity": "medium"},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(exclude_none=True),
        "tools": shown_tools(request.tools),
    }


def failure(error: ApiError) -> Failure:
    """The fields that change when a response fails. The API knows only certain error codes."""
    code = _ERROR_CODES.get(error.status, "server_error")
    return {"status": "failed", "error": {"code": code, "message": error.message}}
