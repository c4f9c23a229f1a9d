"""Body of /v1/chat/completions."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from router.api.conversation import Message, Tool, check_calls, for_template, with_thinking
from router.api.formats import FormattedRequest
from router.api.schema import Short, Strict, meaningless
from router.errors import invalid
from router.text.template import ChatTemplate, Rendered
from router.text.tools.form import OfferedFunction

_RESERVED = frozenset(("messages", "tools", "add_generation_prompt"))
_THINKING = ("enable_thinking", "thinking")


class NamedFunction(Strict):
    """A function by its name."""

    name: str


class NamedTool(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedSpec(Strict):
    """The tools the model may call, and whether it must."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=1024)


class AllowedTools(Strict):
    """Only these of the tools are offered to the model."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedSpec


def _choice_tag(value: Any) -> str:
    """A word, or which kind of object; marked so that an error's path tells it from a field."""
    if isinstance(value, str):
        return "#word"
    return f"#{value.get('type') if isinstance(value, dict) else getattr(value, 'type', None)}"


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("#word")]
    | Annotated[NamedTool, Tag("#function")]
    | Annotated[AllowedTools, Tag("#allowed_tools")],
    Discriminator(_choice_tag),
]


class ChatRequest(FormattedRequest):
    """Body of /v1/chat/completions."""

    # Where a function's parameters stand in the client's request, by its place among the tools.
    parameters_path: ClassVar[str] = "tools[{}].function.parameters"

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] = Field(default_factory=list, max_length=1024)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = Field(True, description="false: the answer ends with its first call")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="from `low` on the model reasons; how much is its own choice"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, max_length=64, description="names for the template; `enable_thinking` switches reasoning"
    )
    modalities: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)
    verbosity: Literal["medium"] | None = None
    safety_identifier: Short | None = meaningless(None)
    prompt_cache_key: Short | None = meaningless(None)
    prompt_cache_retention: Short | None = meaningless(None)

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: send one of them")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise invalid("'tool_choice' needs tools", "tool_choice")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise invalid("'tools': two functions have the same name", "tools")
        for name in self._chosen or ():
            if name not in names:
                raise invalid(f"'tool_choice': no function in 'tools' is called {name[:128]!r}", "tool_choice")
        taken = _RESERVED.intersection(self.chat_template_kwargs)
        if taken:
            raise invalid(f"'chat_template_kwargs' may not set {min(taken)!r}", "chat_template_kwargs")
        check_calls(self.messages)
        return self

    @property
    def thinking(self) -> bool | None:
        """Whether to reason first; None where the request does not say. The template's own switch goes first."""
        for name in _THINKING:
            if isinstance(value := self.chat_template_kwargs.get(name), bool):
                return value
        return None if self.reasoning_effort is None else self.reasoning_effort not in ("none", "minimal")

    @property
    def offered(self) -> list[Tool]:
        """The tools the model may call."""
        if self.tool_choice == "none":
            return []
        return [tool for tool in self.tools if self._chosen is None or tool.function.name in self._chosen]

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call of what is offered."""
        match self.tool_choice:
            case NamedTool() | "required":
                return True
            case AllowedTools(allowed_tools=allowed):
                return allowed.mode == "required"
        return False

    @property
    def single_call(self) -> bool:
        """Whether the answer holds one call at most."""
        return not self.parallel_tool_calls or isinstance(self.tool_choice, NamedTool)

    @property
    def functions(self) -> list[OfferedFunction]:
        """What is offered, as a form of calls reads it."""
        place = {tool.function.name: i for i, tool in enumerate(self.tools)}
        return [
            OfferedFunction(f.name, f.parameters, self.parameters_path.format(place[f.name]), strict=bool(f.strict))
            for f in (tool.function for tool in self.offered)
        ]

    @property
    def _chosen(self) -> list[str] | None:
        """Names the choice is limited to; None for all."""
        match self.tool_choice:
            case NamedTool(function=function):
                return [function.name]
            case AllowedTools(allowed_tools=allowed):
                return [tool.function.name for tool in allowed.tools]
        return None

    def render(self, template: ChatTemplate) -> Rendered:
        """The prompt; 400 if the template has no place for something, or refuses."""
        if self.offered and not template.takes_tools:
            raise invalid("this checkpoint's chat template has no place for 'tools'", "tools")
        messages = for_template(self.messages)
        if self.thinking and template.switches_thinking:
            messages = with_thinking(messages)
        return template.render(messages, [tool.sent for tool in self.offered] or None, self.chat_template_kwargs)
