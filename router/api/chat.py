"""/v1/chat/completions."""

import uuid

from router.api.answers.generated import (
    Call,
    CallDelta,
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Facts,
    FunctionDelta,
    Head,
    Rest,
    Usage,
)
from router.api.chat_schema import ChatRequest
from router.api.logprobs import chat_logprobs
from router.api.request import Request
from router.api.serializer import MARK, Finish, Serializer
from router.http.body import parse
from router.http.dialect import OPENAI, Dialect
from router.http.json import encode
from router.relay.choice import Choice, Delta
from router.text.parts import CallEnd, CallPart, CallStart, Reasoning, Text
from router.text.tokenizer import Tokenizer


class Chat:
    """The chat API's part of generating: how to read, lower and serialize."""

    name = "chat"
    id_prefix = "chatcmpl-"
    dialect: Dialect = OPENAI

    def read(self, body: bytes) -> ChatRequest:
        """Parse and validate a request's body."""
        return parse(body, ChatRequest)

    def lower(self, asked: ChatRequest) -> Request:
        """Lower a request to a neutral one."""
        return asked.lower()

    def serializer(
        self, head: Head, asked: ChatRequest, request: Request, choices: list[Choice], tokenizer: Tokenizer
    ) -> "ChatSerializer":
        """Make the serializer of a request's answer."""
        return ChatSerializer(head, request, choices, tokenizer)


class ChatSerializer(Serializer[ChatChoice, ChatChunkChoice]):
    """Writes a choice as a `message`, or as streamed `delta`s of which the first names the role."""

    def __init__(self, head: Head, request: Request, choices: list[Choice], tokenizer: Tokenizer) -> None:
        super().__init__(head, request, choices, tokenizer)
        self._calls = [0] * len(choices)  # calls of each choice that have begun
        self._around: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # arguments of a choice's call

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The chunk for what a choice gained.

        One with nothing but a call's arguments is put together from prepared bytes.
        """
        if delta.events:
            delta.events = [part for part in delta.events if type(part) is not CallEnd]
            arguments = [part.arguments for part in delta.events if type(part) is CallPart]
            alone = len(arguments) == len(delta.events) and not (delta.text or delta.token_ids or delta.logprobs)
            if arguments and alone and choice.started and not (over or self._continuous):
                before, after = self._around_arguments(choice.index, self._calls[choice.index] - 1)
                return before + encode("".join(arguments)) + after
        return super().chunk(choice, delta, over)

    def _whole(self, items: list[ChatChoice], usage: Usage, beside: Facts) -> ChatCompletion:
        return {**self._head, "object": "chat.completion", "choices": items, "usage": usage, **beside}

    def _chunk(self, items: list[ChatChunkChoice], rest: Rest) -> ChatCompletionChunk:
        return {**self._head, "object": "chat.completion.chunk", "choices": items, **rest}

    def _chunk_choice(self, choice: Choice, delta: Delta, over: bool) -> ChatChunkChoice:
        gained = self._gained(choice, delta)
        if not choice.started:
            gained = {"role": "assistant", "content": None if gained else "", **gained}
        logprobs, finish = self._logprobs(choice, delta), self._finish(choice) if over else None
        return {"index": choice.index, "delta": gained, "logprobs": logprobs, "finish_reason": finish}

    def _whole_choice(self, choice: Choice, delta: Delta) -> ChatChoice:
        gained = self._gained(choice, delta)
        calls = [_whole_call(call) for call in gained.get("tool_calls", ())]
        message: ChatMessage = {
            "role": "assistant",
            "content": gained.get("content", None if calls else ""),
            "refusal": None,
        }
        if "reasoning_content" in gained:
            message["reasoning_content"] = gained["reasoning_content"]
        if calls:
            message["tool_calls"] = calls
        logprobs, finish = self._logprobs(choice, delta), self._finish(choice)
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def _bare_choice(self, index: int, text: str) -> ChatChunkChoice:
        return {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}

    def _around_arguments(self, index: int, call: int) -> tuple[bytes, bytes]:
        if (index, call) not in self._around:
            bare = self._bare_choice(index, "")
            bare["delta"] = {"tool_calls": [{"index": call, "function": {"arguments": MARK}}]}
            self._around[index, call] = self._around_mark(bare)
        return self._around[index, call]

    def _finish(self, choice: Choice) -> Finish:
        assert choice.finish is not None
        return "tool_calls" if choice.finish == "stop" and self._calls[choice.index] else choice.finish

    def _gained(self, choice: Choice, delta: Delta) -> ChatDelta:
        """The delta with what is new, and no other fields; a call's first delta has its id and name."""
        said, thought = delta.text, ""
        calls: dict[int, CallDelta] = {}
        for part in delta.events:
            match part:
                case Text(text):
                    said += text
                case Reasoning(text):
                    thought += text
                case CallStart(name):
                    index = self._calls[choice.index]
                    self._calls[choice.index] += 1
                    function: FunctionDelta = {"name": name, "arguments": ""}
                    call_id = f"call_{uuid.uuid4().hex[:24]}"
                    calls[index] = {"index": index, "id": call_id, "type": "function", "function": function}
                case CallPart(arguments):
                    index = self._calls[choice.index] - 1
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += arguments
                case CallEnd():
                    pass
        gained: ChatDelta = {}
        if thought:
            gained["reasoning_content"] = thought
        if said:
            gained["content"] = said
        if calls:
            gained["tool_calls"] = list(calls.values())
        return gained

    def _logprobs(self, choice: Choice, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(delta.logprobs, self._tokenizer) if choice.keep_logprobs else None


def _whole_call(gained: CallDelta) -> Call:
    function = gained["function"]
    called: CalledFunction = {"name": function["name"], "arguments": function["arguments"]}
    return {"id": gained["id"], "type": gained["type"], "function": called}
