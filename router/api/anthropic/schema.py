"""Bodies of /v1/messages and /v1/messages/count_tokens, and the neutral request they stand for."""

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
from router.api.schema import MAX_TURNS, SessionId, Short, Strict, meaningless
from router.errors import invalid
from router.text.grammar import Form, Schema, json_form
from router.text.tools.form import OfferedFunction

NAMES = Names(result="a tool_result", values=True)


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
    input_examples: list[dict[str, Any]] | None = meaningless(None)  # templates have no place for them
    # Who calls it, and when it is shown: by the model, and from the first.
    allowed_callers: list[Literal["direct"]] | None = Field(None, min_length=1, max_length=1)
    defer_loading: Literal[False] | None = None

    def lower(self, place: int) -> Tool:
        """In neutral form. place: among the request's tools."""
        function = OfferedFunction(
            self.name, self.input_schema, f"tools[{place}].input_schema", strict=bool(self.strict)
        )
        return shown_tool(function, self.description)


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


class Thinking(Strict):
    """`enabled` and `adaptive` turn reasoning on; how much of it is the model's own choice."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = meaningless(None, ge=1)
    display: Literal["summarized", "omitted"] | None = Field(None, description="`omitted` leaves the reasoning out")


class OutputFormat(Strict):
    """JSON that is valid by a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


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


class CountRequest(Strict):
    """Body of /v1/messages/count_tokens."""

    model: str
    messages: list[AnyMessage] = Field(min_length=1, max_length=MAX_TURNS)
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
    mcp_servers: list[Any] | None = meaningless(None, max_length=0)
    speed: Literal["standard"] | None = None
    betas: list[str] | None = meaningless(None)

    @property
    def shows_thinking(self) -> bool:
        """Whether reasoning is part of the answer."""
        thinking = self.thinking
        return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"

    def conversation(self) -> Conversation:
        """The turns to answer; 400 where calls and results do not match, or the choice of tools can't be kept."""
        turns = [turn for i, m in enumerate(self.messages) for turn in m.turns(("messages", i))]
        if system := system_text(self.system):
            turns.insert(0, Turn("system", system, ("system",)))
        check_calls(turns, NAMES)
        thinking = self.thinking.type != "disabled" if self.thinking is not None else None
        return Conversation(tuple(turns), self._tools(), thinking)

    def form(self) -> Form | None:
        """What the answer's text must be; None where it is free."""
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

    def lower(self) -> Request:
        """In neutral form; 400 if the last word is the assistant's."""
        if self.messages[-1].role == "assistant":
            raise invalid("'messages' must end with a user message: the assistant's own can't be continued", "messages")
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
