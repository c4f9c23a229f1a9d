"""Body of /v1/completions."""

from typing import Any, Literal

from pydantic import Field, model_validator

from router.api.formats import FormattedRequest

_PROMPT: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}, "minItems": 1},
    ]
}


class CompletionRequest(FormattedRequest):
    """Body of /v1/completions. `prompt` is checked by `router.api.prompts`, in one pass over possibly many ids."""

    prompt: Any = Field(json_schema_extra=_PROMPT)
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: Literal[1] = 1
    suffix: Literal[""] = ""

    @model_validator(mode="after")
    def _some_output(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 needs echo=true: without it there is nothing to answer")
        return self
