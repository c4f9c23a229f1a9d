"""/v1/chat/completions."""

import uuid
from typing import Any

from router.api.body import parse
from router.api.chat_schema import ChatRequest
from router.api.dialect import OPENAI, Dialect
from router.api.logprobs import chat_logprobs
from router.api.prompts import Wanted
from router.api.shape import MARK, Shape, encode
from router.choice import Choice, Delta, Prompt
from router.errors import invalid
from router.gateway import Limits
from router.grammar import Thinking
from router.parts import CallEnd, CallPart, CallStart, Reasoning, Text
from router.reader import Reader
from router.tokens import Tokenizer
from router.tools import ToolParser
from router.tools.form import answer_form


async def conversation(request: ChatRequest, tokenizer: Tokenizer) -> Prompt:
    """The rendered conversation."""
    if tokenizer.template is None:
        raise invalid("this checkpoint has no chat template: use /v1/completions", "messages")
    text = request.render(tokenizer.template)
    token_ids = await tokenizer.encode(text, add_special_tokens=False)
    if not token_ids:
        raise invalid("the chat template makes no tokens of these messages", "messages", "empty_prompt")
    return Prompt(token_ids, text)


def _thinks(prompt: Prompt) -> bool:
    """Whether the prompt ends within reasoning."""
    return prompt.text is not None and prompt.text.rstrip().endswith("<think>")


class Chat:
    """What is this API's own."""

    name = "chat"
    id_prefix = "chatcmpl-"
    dialect: Dialect = OPENAI

    def __init__(self, parser: type[ToolParser]) -> None:
        self._parser = parser

    def read(self, body: bytes) -> ChatRequest:
        """A validated request."""
        return parse(body, ChatRequest)

    def count_prompts(self, request: ChatRequest) -> int:
        """Always one."""
        return 1

    async def prompts(self, request: ChatRequest, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
        """The rendered conversation."""
        return [await conversation(request, tokenizer)]

    def wanted(self, request: ChatRequest) -> Wanted:
        """Length, log-probabilities, what the text must be, and who tells reasoning and calls from it."""
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        form = answer_form(
            self._parser,
            request.functions,
            request.content_form,
            must_call=request.must_call,
            single=request.single_call,
        )

        def reader(prompt: Prompt) -> Reader:
            calls = self._parser() if request.offered else None
            return Reader(calls, thinking=_thinks(prompt), single=request.single_call)

        def thinking(prompt: Prompt) -> Thinking:
            if _thinks(prompt):
                return Thinking.BEGUN
            return Thinking.MAY if request.thinking else Thinking.NONE

        most = request.max_completion_tokens or request.max_tokens
        return Wanted(most, logprobs, reader=reader, form=form, thinking=thinking)

    def shape(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: ChatRequest,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> Shape:
        """Its JSON."""
        return ChatShape(answer_id, created, model, request, choices, tokenizer)


class ChatShape(Shape):
    """`message` whole, `delta` streamed; the first delta names the role."""

    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def __init__(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: ChatRequest,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__(answer_id, created, model, request, choices, tokenizer)
        self._calls = [0] * len(choices)  # begun so far
        self._around: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # arguments of a choice's call

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """A call's end says nothing of its own here; arguments alone are put into bytes made once a call."""
        if delta.said:
            delta.said = [part for part in delta.said if type(part) is not CallEnd]
            arguments = [part.arguments for part in delta.said if type(part) is CallPart]
            alone = len(arguments) == len(delta.said) and not (delta.text or delta.token_ids or delta.logprobs)
            if arguments and alone and choice.started and not over:
                before, after = self._around_arguments(choice.index, self._calls[choice.index] - 1)
                return before + encode("".join(arguments)) + after
        return super().chunk(choice, delta, over)

    def _chunk_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        gained = self._gained(choice, delta)
        if not choice.started:
            gained = {"role": "assistant", "content": None if gained else "", **gained}
        return {"delta": gained, "logprobs": self._logprobs(choice, delta)}

    def _whole_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        gained = self._gained(choice, delta)
        for call in gained.get("tool_calls", ()):
            del call["index"]
        content = None if "tool_calls" in gained else ""
        message = {"role": "assistant", "content": content, "refusal": None, **gained}
        return {"message": message, "logprobs": self._logprobs(choice, delta)}

    def _bare_choice(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}, "logprobs": None}

    def _around_arguments(self, index: int, call: int) -> tuple[bytes, bytes]:
        if (index, call) not in self._around:
            delta = {"tool_calls": [{"index": call, "function": {"arguments": MARK}}]}
            self._around[index, call] = self._around_mark(index, {"delta": delta, "logprobs": None})
        return self._around[index, call]

    def _finish(self, choice: Choice) -> str | None:
        return "tool_calls" if choice.finish == "stop" and self._calls[choice.index] else choice.finish

    def _gained(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        """What is new, as a delta has it: only what there is; a call's id and name where it begins."""
        texts = {"reasoning_content": "", "content": delta.text}
        calls: dict[int, dict[str, Any]] = {}
        for part in delta.said:
            match part:
                case Text(text):
                    texts["content"] += text
                case Reasoning(text):
                    texts["reasoning_content"] += text
                case CallStart(name):
                    index = self._calls[choice.index]
                    self._calls[choice.index] += 1
                    function = {"name": name, "arguments": ""}
                    calls[index] = {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
                    calls[index]["function"] = function
                case CallPart(arguments):
                    index = self._calls[choice.index] - 1
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += arguments
                case CallEnd():
                    pass
        gained: dict[str, Any] = {name: text for name, text in texts.items() if text}
        return gained | ({"tool_calls": list(calls.values())} if calls else {})

    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any] | None:
        return chat_logprobs(delta.logprobs, self._tokenizer) if choice.keep_logprobs else None
