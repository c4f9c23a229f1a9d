"""Answers and chunks of /v1/chat/completions and /v1/completions."""

from collections.abc import Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from router.relay.choice import ServedBy, Timings


class CachedTokens(TypedDict):
    """Prompt tokens that were reused instead of computed."""

    cached_tokens: int


class OutputTokens(TypedDict):
    """Answer tokens that are reasoning, counted from its text."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Token counts of all choices; a prompt that several choices share counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Facts(TypedDict, total=False):
    """Facts about one choice: beside `choices` if there is one choice, inside each choice if there are several.

    timings: sent with the end of a choice. prompt_token_ids: sent with its beginning, if `return_token_ids` asks for
    them.
    """

    timings: ServedBy | Timings
    prompt_token_ids: Sequence[int]


class OneChoice(Facts):
    """Fields that all items of `choices` have."""

    index: int
    token_ids: NotRequired[list[int]]


class Head(TypedDict):
    """The first fields of an answer and of each of its chunks. created: Unix time in seconds."""

    id: str
    created: int
    model: str


class Rest(Facts):
    """The last fields of a chunk.

    usage: null except in the last chunk, which has no choices; absent if not asked for.
    """

    usage: NotRequired[Usage | None]


class TopLogprob(TypedDict):
    """A candidate token. bytes: the bytes of its text, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """The chosen token and the most likely candidates."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat's choice or chunk."""

    content: list[TokenLogprobs]
    refusal: None


class CalledFunction(TypedDict):
    """A called function. arguments: JSON as the model wrote it."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """The assistant's message: content, reasoning and tool calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(OneChoice):
    """One complete answer."""

    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Head, Facts):
    """The answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(TypedDict):
    """The next piece of a function call. name: only in the first piece."""

    name: NotRequired[str]
    arguments: str


class CallDelta(TypedDict):
    """The next piece of a tool call. index: of the call within the choice. id, type: only in the first piece."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class ChatDelta(TypedDict, total=False):
    """The next piece of a message. role: only in the first piece."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    tool_calls: list[CallDelta]


class ChatChunkChoice(OneChoice):
    """The next piece of one choice."""

    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(Head, Rest):
    """One event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class CompletionLogprobs(TypedDict):
    """Lists with one item per token.

    token_logprobs, top_logprobs: null for a prompt's first token. text_offset: in characters.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChunkChoice(OneChoice):
    """The next piece of one text."""

    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextChoice(OneChoice):
    """One complete text."""

    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Head, Facts):
    """The answer to one prompt or to several."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class CompletionChunk(Head, Rest):
    """One event of a completion's stream."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
