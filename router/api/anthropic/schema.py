"""Bodies of /v1/messages and /v1/messages/count_tokens, and the chat request they stand for."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from router.api.anthropic.blocks import AnyMessage, SystemText, system_text
from router.api.anthropic.words import in_these_words
from router.api.chat_schema import ChatRequest
from router.api.schema import Short, Strict, meaningless
from router.errors import ApiError, invalid


def _own_tool(value: Any) -> Any:
    if value not in (None, "custom"):
        raise ValueError(f"the server runs no tools of its own, such as {str(value)[:80]!r}: define it as custom")
    return value


class ToolSpec(Strict):
    """A tool the model may call. input_schema: JSON Schema, shown to the model as it is."""

    type: Annotated[Literal["custom"] | None, BeforeValidator(_own_tool)] = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(None, description="true: calls are made of valid input alone")
    cache_control: dict[str, Any] | None = meaningless(None)
    eager_input_streaming: bool | None = meaningless(None)
    # Who calls it, and when it is shown: by the model, and from the first.
    allowed_callers: list[Literal["direct"]] | None = Field(None, min_length=1, max_length=1)
    defer_loading: Literal[False] | None = None

    def as_chat(self) -> dict[str, Any]:
        """As the chat API has it, which is what the model was trained on."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function |= {"parameters": self.input_schema, "strict": self.strict}
        return {"type": "function", "function": function}


class ToolChoice(Strict):
    """name: of the tool that must be called. disable_parallel_tool_use: the answer ends with its first call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("a name goes with type 'tool', and with no other")
        return self

    def as_chat(self) -> Any:
        """As the chat API has it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class Thinking(Strict):
    """`enabled` and `adaptive` turn reasoning on; how much of it is the model's own choice."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = meaningless(None, ge=1)
    display: Literal["summarized", "omitted"] | None = Field(None, description="`omitted` leaves the reasoning out")


class OutputFormat(Strict):
    """JSON that is valid by a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")

    def as_chat(self) -> dict[str, Any]:
        """As the chat API has it."""
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": self.schema_, "strict": True}}


class OutputConfig(Strict):
    """What the answer's text must be, and the level of effort."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = meaningless(None)
    format: OutputFormat | None = None


class ClearThinking(Strict):
    """Which earlier reasoning to leave out: the family's templates leave out all of it."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = meaningless(None)


class ContextManagement(Strict):
    """Edits of the conversation. Those of tool results are refused: they would have to be done."""

    edits: list[ClearThinking] = Field(default_factory=list)


class Metadata(Strict):
    """Whom a request is for."""

    user_id: Short | None = None


class MessagesChat(ChatRequest):
    """A message's request as a chat's. shows_thinking: reasoning is part of the answer."""

    schema_path = "output_config.format.schema"
    parameters_path = "tools[{}].input_schema"

    shows_thinking: bool = False


class CountRequest(Strict):
    """Body of /v1/messages/count_tokens."""

    model: str
    messages: list[AnyMessage] = Field(min_length=1)
    system: SystemText = Field(
        default_factory=list,
        description="a block that begins with `x-anthropic-billing-header:` is left out: it differs each time, and "
        "no part of the prompt could be found computed already",
    )
    tools: list[ToolSpec] = Field(default_factory=list, max_length=1024)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = Field(None, description="`enabled` and `adaptive` switch reasoning on")
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = meaningless(None)
    context_management: ContextManagement | None = meaningless(None)

    def as_chat(self) -> MessagesChat:
        """The chat request of the same prompt and the same settings."""
        placed = [(f"messages[{i}]{at}", chat) for i, m in enumerate(self.messages) for at, chat in m.as_chat()]
        if system := system_text(self.system):
            placed.insert(0, ("system", {"role": "system", "content": system}))
        try:
            return MessagesChat.model_validate(self._chat() | {"messages": [chat for _, chat in placed]})
        except ApiError as error:
            raise in_these_words(error, [place for place, _ in placed]) from None

    def _chat(self) -> dict[str, Any]:
        chat: dict[str, Any] = {
            "model": self.model,
            "tools": [tool.as_chat() for tool in self.tools],
        }
        if self.tool_choice is not None:
            if self.tools or self.tool_choice.type in ("any", "tool"):
                chat["tool_choice"] = self.tool_choice.as_chat()
            chat["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        if self.output_config is not None and self.output_config.format is not None:
            chat["response_format"] = self.output_config.format.as_chat()
        if self.thinking is not None:
            on = self.thinking.type != "disabled"
            chat["reasoning_effort"] = "high" if on else "none"
            chat["shows_thinking"] = on and self.thinking.display != "omitted"
        return chat


class MessagesRequest(CountRequest):
    """Body of /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        default_factory=list, max_length=16
    )
    stream: bool = False
    temperature: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, lt=2**31)
    metadata: Metadata | None = meaningless(None)
    service_tier: Literal["auto", "standard_only"] = meaningless("auto")

    @model_validator(mode="before")
    @classmethod
    def _no_thread(cls, value: Any) -> Any:
        """By the code this is refused with, the vendor's SDK learns to send conversations whole."""
        if isinstance(value, dict) and value.get("thread") is not None:
            message = "'thread' is not supported: send the whole conversation"
            raise invalid(message, "thread", "thread_unsupported_request")
        return value

    def as_chat(self) -> MessagesChat:
        """400 if the last word is the assistant's."""
        if self.messages[-1].role == "assistant":
            raise invalid("'messages' must end with a user message: the assistant's own can't be continued", "messages")
        return super().as_chat()

    def _chat(self) -> dict[str, Any]:
        return super()._chat() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
