"""Body of /v1/responses, and the chat request it stands for."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from router.api.chat_schema import ChatRequest
from router.api.responses.items import InputItem, tag
from router.api.responses.tools import AllowedTools, FunctionTool, NamedTool, ToolChoice
from router.api.responses.turns import Turn
from router.api.schema import Short, Strict, meaningless
from router.errors import invalid
from router.http.body import check
from router.priority import LATEST, SOONEST

LOGPROBS = "message.output_text.logprobs"


def _item_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of items")
    return value


class FreeText(Strict):
    """No format."""

    type: Literal["text"]


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """JSON that is valid by a schema. strict: a keyword that can't be enforced is a 400, else it is passed over."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


Format = Annotated[
    Annotated[FreeText, Tag("#text")]
    | Annotated[JsonObject, Tag("#json_object")]
    | Annotated[JsonSchema, Tag("#json_schema")],
    Discriminator(tag),
]


class TextConfig(Strict):
    """What the text is to be."""

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """Whether to reason first. There are no summaries: the reasoning itself is in the answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="from `low` on the model reasons; how much is its own choice"
    )
    summary: Literal["auto", "concise", "detailed"] | None = meaningless(None)
    generate_summary: Literal["auto", "concise", "detailed"] | None = meaningless(None)
    context: Literal["auto", "current_turn"] | None = None
    mode: Literal["standard"] | None = None


class StreamOptions(Strict):
    """What a stream carries besides its events."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(Strict):
    """Body of /v1/responses."""

    model: str
    input: Annotated[
        list[InputItem],
        Field(min_length=1),
        BeforeValidator(_item_list, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = Field(None, description="of this answer alone: the next does not inherit them")
    previous_response_id: Short | None = Field(None, description="a kept response, whose conversation goes on")
    store: bool = Field(True, description="kept as long as there is room: see above")
    background: bool = Field(False, description="needs `store`; goes on when the client has left")
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[FunctionTool] = Field(default_factory=list, max_length=1024)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="false: the answer ends with its first call")
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = Field(None, ge=1, description="reasoning counts too")
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_logprobs: int = Field(0, ge=0, le=20, description=f"needs `{LOGPROBS}` in `include`")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field(
        default_factory=list,
        max_length=16,
        description="log-probabilities need an answer of text alone: no `tools`, no reasoning; "
        "`reasoning.encrypted_content` changes nothing: reasoning is not hidden",
    )
    truncation: Literal["auto", "disabled"] = Field(
        "disabled", description="`auto`: what is too long loses its oldest turns, never its instructions or last turn"
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Short] = Field(
        default_factory=dict, max_length=16, description="repeated in the answer"
    )
    priority: int = Field(0, ge=SOONEST, le=LATEST, description="lower goes first, and takes the places of higher")
    cache_salt: Short | None = Field(None, min_length=1, description="only requests with the same salt share prefixes")
    # What follows is repeated in the answer and changes nothing else here.
    user: Short | None = meaningless(None)
    safety_identifier: Short | None = meaningless(None)
    prompt_cache_key: Short | None = meaningless(None)
    prompt_cache_retention: Literal["in_memory", "24h"] | None = meaningless(None)
    service_tier: Literal["auto", "default"] = meaningless("auto")
    max_tool_calls: int | None = meaningless(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ResponseRequest":
        if self.background and not self.store:
            raise invalid("'background' needs 'store': the answer could not be fetched", "background")
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' needs 'stream'", "stream_options")
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise invalid("'tools': two functions have the same name", "tools")
        for name in self._chosen_names():
            if name not in names:
                raise invalid(f"'tool_choice': no function in 'tools' is called {name[:128]!r}", "tool_choice")
        if self.tool_choice == "required" and not names:
            raise invalid("'tool_choice' required needs tools", "tool_choice")
        if self.top_logprobs and not self.wants_logprobs:
            raise invalid(f"'top_logprobs' needs '{LOGPROBS}' in 'include'", "top_logprobs")
        calls = self.tools and self.tool_choice != "none"
        if self.wants_logprobs and (calls or self._effort not in (None, "none", "minimal")):
            message = f"'include': '{LOGPROBS}' needs an answer of text alone: no tools and no reasoning"
            raise invalid(message, "include")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer carries log-probabilities."""
        return LOGPROBS in self.include

    @property
    def _effort(self) -> str | None:
        return self.reasoning.effort if self.reasoning is not None else None

    def _chosen_names(self) -> list[str]:
        match self.tool_choice:
            case NamedTool(name=name):
                return [name]
            case AllowedTools(tools=tools):
                return [tool.name for tool in tools]
        return []

    def as_chat(self, messages: Sequence[Turn]) -> "ResponseChat":
        """The chat request of a conversation with the same settings."""
        chat: dict[str, Any] = {
            "asked": self,
            "model": self.model,
            "messages": messages,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "priority": self.priority,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        if self.max_output_tokens is not None:
            chat["max_tokens"] = self.max_output_tokens
        if self.tools:
            chat |= {"tools": [tool.as_chat() for tool in self.tools], "tool_choice": self._chat_choice()}
        if self._effort is not None:
            chat["reasoning_effort"] = self._effort
        if self.wants_logprobs:
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.text is not None and self.text.format is not None:
            chat["response_format"] = _chat_format(self.text.format)
        return check(chat, ResponseChat)

    def _chat_choice(self) -> Any:
        match self.tool_choice:
            case NamedTool():
                return self.tool_choice.as_chat()
            case AllowedTools(mode=mode, tools=tools):
                return {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": mode, "tools": [tool.as_chat() for tool in tools]},
                }
        return self.tool_choice


class ResponseChat(ChatRequest):
    """A response's request as a chat's, which names what is wrong with schemas as the client sent them."""

    schema_path: ClassVar[str] = "text.format.schema"
    parameters_path: ClassVar[str] = "tools[{}].parameters"
    asked: ResponseRequest


def _chat_format(wanted: FreeText | JsonObject | JsonSchema) -> dict[str, Any]:
    if not isinstance(wanted, JsonSchema):
        return {"type": wanted.type}
    return {"type": "json_schema", "json_schema": wanted.model_dump(by_alias=True, exclude_none=True, exclude={"type"})}
