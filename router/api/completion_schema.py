"""Body of /v1/completions."""

from typing import Any, Literal

from pydantic import Field, model_validator

from router.api.formats import FormattedRequest
from router.api.request import RawPrompt, RawPrompts, Request
from router.errors import fault, invalid

_PROMPT: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}, "minItems": 1},
    ]
}


class CompletionRequest(FormattedRequest):
    """Body of /v1/completions. `prompt` is checked when it is lowered, in one pass over possibly many ids."""

    prompt: Any = Field(json_schema_extra=_PROMPT)
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    suffix: Literal[""] = ""

    @model_validator(mode="after")
    def _some_output(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise invalid("'max_tokens' 0 needs echo=true: otherwise the answer would be empty", "max_tokens")
        return self

    def lower(self) -> Request:
        """Lower to a neutral request; an echoed prompt gets log-probabilities of its own."""
        source = RawPrompts(_raw_prompts(self.prompt))
        return self.neutral(source, self.max_tokens, self.logprobs, self.logprobs if self.echo else None)


def _raw_prompts(value: Any) -> tuple[RawPrompt, ...]:
    """Read the four formats of a completion's `prompt` as texts and lists of token ids."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise invalid("'prompt' must be a string, a list of strings, or token ids", "prompt")
    if not value:
        raise invalid("'prompt' is empty", "prompt", "empty_prompt")
    if _is_ids(value):
        return (value,)
    for i, item in enumerate(value):
        if not isinstance(item, str) and not (isinstance(item, list) and _is_ids(item)):
            raise fault(("prompt", i), "must be a string or a list of token ids, like the other prompts")
    return tuple(value)


def _is_ids(value: list[Any]) -> bool:
    # bool is a subclass of int; the set of types is one pass in C over what may be a million ids.
    return set(map(type, value)) <= {int}
