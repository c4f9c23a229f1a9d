"""Request bodies. Strict: each field is honoured, or its only harmless values are accepted, or it is refused.

Top-level nulls are dropped before validation (OpenAI's clients send them for "not set").
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Short = Annotated[str, Field(max_length=512)]


def _stop_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of strings")
    return value


def _part_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of text parts")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Strict):
    """What a stream carries besides tokens."""

    include_usage: bool = False


class TextFormat(_Strict):
    """The only response format: free text."""

    type: Literal["text"] = "text"


class GenerationRequest(_Strict):
    """What both APIs share."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: Probability = 0.0
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=10, allow_inf_nan=False)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = Field(
        default_factory=dict, max_length=1024
    )
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]],
        Field(max_length=16),
        BeforeValidator(_stop_list),
    ] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=256)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    # What follows changes nothing here, or has one value that asks for nothing.
    user: Short | None = None
    metadata: dict[Short, Short] | None = Field(None, max_length=16)
    store: Literal[False] = False
    service_tier: Literal["auto", "default"] = "auto"

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class Function(_Strict):
    """A function's name and its arguments as JSON text, as the model wrote them."""

    name: str
    arguments: str


class ToolCall(_Strict):
    """A call the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: Function


Content = Annotated[list[TextPart], BeforeValidator(_part_list)]


class _Message(_Strict):
    content: Content
    name: str | None = None


class SystemMessage(_Message):
    """Instructions; `developer` is the newer word for the same."""

    role: Literal["system", "developer"]


class UserMessage(_Message):
    """What the user said."""

    role: Literal["user"]


class AssistantMessage(_Message):
    """What the model said or called."""

    role: Literal["assistant"]
    content: Content = Field(default_factory=list)
    tool_calls: list[ToolCall] = Field(default_factory=list)

    @model_validator(mode="after")
    def _says_something(self) -> "AssistantMessage":
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(_Message):
    """What a called function returned."""

    role: Literal["tool"]
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ChatRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)
    tool_choice: Literal["none"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: send one of them")
        return self

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages as a chat template reads them: content is text, unset fields are absent."""
        return [_for_template(m) for m in self.messages]


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions. `prompt` is checked by `router.api.prompts`, in one pass over possibly many ids."""

    prompt: Any
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


def _for_template(message: _Message) -> dict[str, Any]:
    out = message.model_dump(exclude_unset=True)
    said = "content" in message.model_fields_set
    out["content"] = "\n".join(part.text for part in message.content) if said else None
    if out["role"] == "developer":
        out["role"] = "system"
    return out
