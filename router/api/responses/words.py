"""What the chat API says is wrong, in this API's words."""

import re

from router.errors import ApiError

# A request is read as a chat's once its items are; what fails from there on names the chat's fields.
_WORDS = (
    (re.compile(r"\btools\[(\d+)\]\.function\b"), r"tools[\1]"),
    (re.compile(r"\bmax_tokens\b"), "max_output_tokens"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"^(messages|prompt)\b"), "input"),
    (re.compile(r"'messages'"), "'input'"),
)


def in_these_words(error: ApiError) -> ApiError:
    """The same error about the fields a client of this API sent."""
    return ApiError(
        error.status,
        _reworded(error.message),
        param=_reworded(error.param) if error.param is not None else None,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def _reworded(text: str) -> str:
    for pattern, word in _WORDS:
        text = pattern.sub(word, text)
    return text
