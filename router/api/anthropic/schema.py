"""Bodies of /v1/messages and /v1/messages/count_tokens, and their lowering to a neutral request."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from router.api.anthropic.blocks import AnyMessage, SystemText, system_text
from router.api.request import (
    Conversation,
    Names,
    Request,
    Sampling,
    Tool,
    Tools,
    Turn,
    check_calls,
    choose_tools,
    shown_tool,
)
from router.api.schema import MAX_TURNS, Probability, SessionId, Short, Strict, meaningless
from router.errors import invalid
from router.text.grammar import Form, Schema, json_form
from router.text.tools.form import OfferedFunction

NAMES = Names(result="a tool_result", values=True)


def _own_tool(value: Any) -> Any:
    if value not in (None, "custom"):
        raise ValueError(f"the server runs no tools of its own, such as {str(value)[:80]!r}: define it as custom")
    return value


class ToolSpec(Strict):
    """A tool that the model may call. `input_schema` is a JSON Schema, which the model sees unchanged."""

    type: Annotated[Literal["custom"] | None, BeforeValidator(_own_tool)] = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(None, description="true: the input of calls is always valid")
    cache_control: dict[str, Any] | None = meaningless(None)
    eager_input_streaming: bool | None = meaningless(None)
    input_examples: list[dict[str, Any]] | None = meaningless(None)  # chat templates do not show them
    # Only these values are accepted: the model calls the tool, and sees it from the start.
    allowed_callers: list[Literal["direct"]] | None = Field(None, min_length=1, max_length=1)
    defer_loading: Literal[False] | None = None

    def lower(self, place: int) -> Tool:
        """Lower to a neutral tool. place: the tool's index in the request."""
        function = OfferedFunction(
            self.name, self.input_schema, f"tools[{place}].input_schema", strict=bool(self.strict)
        )
        return shown_tool(function, self.description)


class ToolChoice(Strict):
    """Which tools the answer may or must call.

    `name` is the tool that it must call. With `disable_parallel_tool_use` the answer ends after its first call.
    """

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("a name is needed with type 'tool', and allowed with no other")
        return self


class Thinking(Strict):
    """Whether the model reasons first. `enabled` and `adaptive` turn reasoning on; its length is the model's choice."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = meaningless(None, ge=1)
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="`omitted` leaves the reasoning out of the answer"
    )


class OutputFormat(Strict):
    """JSON that a schema validates."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """The form of the answer's text, and the level of effort."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = meaningless(None)
    format: OutputFormat | None = None


class ClearThinking(Strict):
    """Which earlier reasoning to leave out. The model family's templates always leave out all of it."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = meaningless(None)


class ContextManagement(Strict):
    """Edits of the conversation. Edits of tool results are refused, because the server does not do them."""

    edits: list[ClearThinking] = Field(default_factory=list)


class Metadata(Strict):
    """The user for whom the request is made."""

    user_id: Short | None = None


class CountRequest(Strict):
    """Body of /v1/messages/count_tokens."""

    model: str
    messages: list[AnyMessage] = Field(min_length=1, max_length=MAX_TURNS)
    system: SystemText = Field(
        default_factory=list,
        description="a block that begins with `x-anthropic-billing-header:` is left out: it differs in each request, "
        "so that no prefix could be reused",
    )
    tools: list[ToolSpec] = Field(default_factory=list, max_length=1024)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = Field(None, description="`enabled` and `adaptive` turn reasoning on")
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = meaningless(None)
    context_management: ContextManagement | None = meaningless(None)
    mcp_servers: list[Any] | None = meaningless(None, max_length=0)
    speed: Literal["standard"] | None = None
    betas: list[str] | None = meaningless(None)

    @property
    def shows_thinking(self) -> bool:
        """Whether reasoning is part of the answer."""
        thinking = self.thinking
        return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"

    def conversation(self) -> Conversation:
        """The turns to answer; 400 if calls and results do not match or `tool_choice` can't be fulfilled."""
        turns = [turn for i, m in enumerate(self.messages) for turn in m.turns(("messages", i))]
        if system := system_text(self.system):
            turns.insert(0, Turn("system", system, ("system",)))
        check_calls(turns, NAMES)
        thinking = self.thinking.type != "disabled" if self.thinking is not None else None
        return Conversation(tuple(turns), self._tools(), thinking)

    def form(self) -> Form | None:
        """The form of the answer's text; None if it is free."""
        if self.output_config is None or self.output_config.format is None:
            return None
        return json_form(Schema(self.output_config.format.schema_, "output_config.format.schema"))

    def _tools(self) -> Tools:
        tools = [tool.lower(i) for i, tool in enumerate(self.tools)]
        choice = self.tool_choice
        if choice is None:
            return choose_tools(tools, None, None, single=False)
        single = choice.disable_parallel_tool_use
        match choice.type:
            case "tool":
                return choose_tools(tools, "required", [choice.name or ""], single=True)
            case "any":
                return choose_tools(tools, "required", None, single=single)
            case mode:
                return choose_tools(tools, mode if tools else None, None, single=single)


class MessagesRequest(CountRequest):
    """Body of /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        default_factory=list, max_length=16
    )
    session_id: SessionId | None = Field(None, description="the session that this continues; see docs/SESSIONS.md")
    stream: bool = False
    temperature: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    top_p: Probability = 1.0
    top_k: int = Field(0, ge=0, lt=2**31)
    metadata: Metadata | None = meaningless(None)
    service_tier: Literal["auto", "standard_only"] = meaningless("auto")

    @model_validator(mode="before")
    @classmethod
    def _no_thread(cls, value: Any) -> Any:
        """Refuse `thread` with the error code that makes the vendor's SDK send whole conversations."""
        if isinstance(value, dict) and value.get("thread") is not None:
            message = "'thread' is not supported: send the whole conversation"
            raise invalid(message, "thread", "thread_unsupported_request")
        return value

    def lower(self) -> Request:
        """Lower to a neutral request; 400 if the last message is the assistant's."""
        if self.messages[-1].role == "assistant":
            raise invalid("'messages' must end with a user message: an assistant's can't be continued", "messages")
        sampling = Sampling(
            self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
        )
        return Request(
            self.conversation(), sampling, self.form(), stream=self.stream, session=self.session_id, names=NAMES
        )
