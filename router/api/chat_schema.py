"""Body of /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from router.api.conversation import Message, Tool, check_calls, for_template, with_thinking
from router.api.schema import GenerationRequest, Short, Strict, meaningless
from router.errors import invalid
from router.template import ChatTemplate

_RESERVED = frozenset(("messages", "tools", "add_generation_prompt"))
_THINKING = ("enable_thinking", "thinking")


class TextFormat(Strict):
    """The only response format: free text."""

    type: Literal["text"] = "text"


def _free_choice(value: Any) -> Any:
    if value == "required" or isinstance(value, dict):
        what = "'required'" if isinstance(value, str) else "a named tool"
        raise ValueError(f"{what} needs output enforced by a grammar, which is not built yet: use 'auto' or 'none'")
    return value


class ChatRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] = Field(default_factory=list, max_length=1024)
    tool_choice: Annotated[Literal["auto", "none"] | None, BeforeValidator(_free_choice)] = Field(
        None, description="`required` and a named tool are refused: they need a grammar"
    )
    parallel_tool_calls: bool = Field(True, description="false: the answer ends with its first call")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="from `low` on the model reasons; how much is its own choice"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, max_length=64, description="names for the template; `enable_thinking` switches reasoning"
    )
    response_format: TextFormat | None = None
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
        if self.tool_choice == "auto" and not self.tools:
            raise invalid("'tool_choice' auto needs tools", "tool_choice")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise invalid("'tools': two functions have the same name", "tools")
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
        return [] if self.tool_choice == "none" else self.tools

    def render(self, template: ChatTemplate) -> str:
        """The prompt; 400 if the template has no place for something, or refuses."""
        if self.offered and not template.takes_tools:
            raise invalid("this checkpoint's chat template has no place for 'tools'", "tools")
        messages = for_template(self.messages)
        if self.thinking and template.switches_thinking:
            messages = with_thinking(messages)
        return template.render(messages, [tool.sent for tool in self.offered] or None, self.chat_template_kwargs)
