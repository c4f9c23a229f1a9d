"""Body of /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from router.api.chat_messages import FunctionTool, Message, turns
from router.api.formats import FormattedRequest
from router.api.request import Conversation, Ending, Names, Request, Tools, check_calls, choose_tools
from router.api.schema import MAX_TURNS, Short, Strict, meaningless
from router.errors import invalid

_RESERVED = frozenset(("messages", "tools", "add_generation_prompt"))
_THINKING = ("enable_thinking", "thinking")


class NamedFunction(Strict):
    """The name of a function."""

    name: str


class NamedTool(Strict):
    """The function that the answer must call."""

    type: Literal["function"]
    function: NamedFunction


class AllowedSpec(Strict):
    """The tools that the model may call, and whether it must call one."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=1024)


class AllowedTools(Strict):
    """Offers the model only some of the request's tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedSpec


def _choice_tag(value: Any) -> str:
    """The discriminator: a word or the object's type, marked so that it can be told from a field in an error's path."""
    if isinstance(value, str):
        return "#(word)"
    return f"#{value.get('type') if isinstance(value, dict) else getattr(value, 'type', None)}"


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("#(word)")]
    | Annotated[NamedTool, Tag("#function")]
    | Annotated[AllowedTools, Tag("#allowed_tools")],
    Discriminator(_choice_tag),
]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ThinkingSwitch(Strict):
    """Whether to reason first; how much is the model's own choice."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = meaningless(None, ge=1)


class Reasoning(Strict):
    """Whether to reason first; how much is the model's own choice."""

    effort: Effort | None = None
    enabled: bool | None = None
    max_tokens: int | None = meaningless(None, ge=1)
    exclude: Literal[False] = False
    summary: Literal["auto", "concise", "detailed"] | None = meaningless(None)


class ChatRequest(FormattedRequest):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_TURNS)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[FunctionTool] = Field(default_factory=list, max_length=1024)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = Field(True, description="false: the answer ends after its first call")
    reasoning_effort: Effort | None = Field(
        None, description="`low` and above turn reasoning on; its length is the model's choice"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        max_length=64,
        description="variables of the chat template; `enable_thinking` turns reasoning on",
    )
    enable_thinking: bool | None = Field(None, description="as in `chat_template_kwargs`")
    thinking: bool | ThinkingSwitch | None = Field(None, description="switches reasoning")
    reasoning: Reasoning | None = Field(None, description="as `reasoning_effort`")
    add_generation_prompt: bool = Field(True, description="false: the prompt ends after the last message")
    continue_final_message: bool = Field(
        False, description="the answer continues the last message, which must be the assistant's"
    )
    modalities: list[Literal["text"]] | None = Field(None, min_length=1, max_length=1)
    verbosity: Literal["low", "medium", "high"] | None = meaningless(None)
    safety_identifier: Short | None = meaningless(None)
    prompt_cache_key: Short | None = meaningless(None)
    prompt_cache_retention: Short | None = meaningless(None)

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("'top_logprobs' needs logprobs=true", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            message = "'max_tokens' and 'max_completion_tokens' differ: send one of them"
            raise invalid(message, "max_completion_tokens")
        taken = _RESERVED.intersection(self.chat_template_kwargs)
        if taken:
            raise invalid(f"'chat_template_kwargs' must not set {min(taken)!r}", "chat_template_kwargs")
        if self.continue_final_message:
            last = self.messages[-1]
            if last.role != "assistant" or last.tool_calls or not last.text:
                message = (
                    "'continue_final_message' needs a last message of the assistant with content and without calls"
                )
                raise invalid(message, "continue_final_message")
            if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
                message = "'continue_final_message' and 'add_generation_prompt' exclude each other: send one of them"
                raise invalid(message, "continue_final_message")
        return self

    def conversation(self) -> Conversation:
        """The turns to answer; 400 if calls and results do not match or `tool_choice` can't be fulfilled."""
        lowered = turns(self.messages)
        check_calls(lowered, Names())
        return Conversation(lowered, self._tools(), self._thinking, self.chat_template_kwargs, self._ending)

    def lower(self) -> Request:
        """In neutral form."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.neutral(self.conversation(), self.max_completion_tokens or self.max_tokens, logprobs)

    @property
    def _thinking(self) -> bool | None:
        """Whether to reason first; None if the request leaves it open.

        The template's own switch overrides the other fields.
        """
        for name in _THINKING:
            if isinstance(value := self.chat_template_kwargs.get(name), bool):
                return value
        if self.enable_thinking is not None:
            return self.enable_thinking
        if self.thinking is not None:
            return self.thinking if isinstance(self.thinking, bool) else self.thinking.type != "disabled"
        if self.reasoning is not None and self.reasoning.enabled is not None:
            return self.reasoning.enabled
        effort = self.reasoning_effort or (self.reasoning.effort if self.reasoning is not None else None)
        return None if effort is None else effort not in ("none", "minimal")

    @property
    def _ending(self) -> Ending:
        if self.continue_final_message:
            return Ending.CONTINUE
        return Ending.ANSWER if self.add_generation_prompt else Ending.NOTHING

    def _tools(self) -> Tools:
        tools = [tool.lower(i) for i, tool in enumerate(self.tools)]
        single = not self.parallel_tool_calls
        match self.tool_choice:
            case NamedTool(function=function):
                return choose_tools(tools, "required", [function.name], single=True)
            case AllowedTools(allowed_tools=allowed):
                names = [tool.function.name for tool in allowed.tools]
                return choose_tools(tools, allowed.mode, names, single=single)
            case mode:
                return choose_tools(tools, mode, None, single=single)
