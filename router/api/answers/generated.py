"""Answers and chunks of /v1/chat/completions and /v1/completions."""

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from router.relay.choice import ServedBy


class CachedTokens(TypedDict):
    """Those of a prompt that were not computed anew."""

    cached_tokens: int


class OutputTokens(TypedDict):
    """Those of an answer that are reasoning, counted anew from its text."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens of all choices; a prompt that several share counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Facts(TypedDict, total=False):
    """Of one choice. They stand beside `choices` where there is one, inside each where there are several.

    timings: with the end of a choice. prompt_token_ids: with its beginning, where `return_token_ids` asks for them.
    """

    timings: ServedBy
    prompt_token_ids: Sequence[int]


class OneChoice(Facts):
    """What items of `choices` share."""

    index: int
    token_ids: NotRequired[list[int]]


class Head(TypedDict):
    """What all of one answer's JSON begins with. created: Unix time in seconds."""

    id: str
    created: int
    model: str


class Rest(Facts):
    """What a chunk ends with. usage: where it was asked for, null but in the last chunk, which has no choices."""

    usage: NotRequired[Usage | None]


class TopLogprob(TypedDict):
    """A token that could have stood in a place. bytes: of its text, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """The token that stands there, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Of a chat's choice or chunk."""

    content: list[TokenLogprobs]
    refusal: None


class CalledFunction(TypedDict):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """What the model said, thought and called."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(OneChoice):
    """One answer."""

    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Head, Facts):
    """The answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(TypedDict):
    """More of a call. name: with its beginning."""

    name: NotRequired[str]
    arguments: str


class CallDelta(TypedDict):
    """What a call gained. index: among the choice's calls. id, type: with its beginning."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict, total=False):
    """What a choice gained. role: with its beginning."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    tool_calls: list[CallDelta]


class ChatChunkChoice(OneChoice):
    """What one answer gained."""

    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(Head, Rest):
    """An event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class CompletionLogprobs(TypedDict):
    """One item a token in each. token_logprobs, top_logprobs: null for a prompt's first. text_offset: in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChunkChoice(OneChoice):
    """What one text gained."""

    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextChoice(OneChoice):
    """One text."""

    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Head, Facts):
    """The answer to a prompt, or to several."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class CompletionChunk(Head, Rest):
    """An event of a completion's stream."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
