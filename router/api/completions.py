"""/v1/completions."""

from router.api.answers.generated import (
    Completion,
    CompletionChunk,
    Facts,
    Head,
    Rest,
    TextChoice,
    TextChunkChoice,
    Usage,
)
from router.api.answers.generated import CompletionLogprobs as LogprobsJson
from router.api.completion_schema import CompletionRequest
from router.api.logprobs import CompletionLogprobs
from router.api.request import Request
from router.api.serializer import Serializer
from router.http.body import parse
from router.http.dialect import OPENAI, Dialect
from router.relay.choice import Choice, Delta
from router.text.tokenizer import Tokenizer


class Completions:
    """The completions API's part of generating: how to read, lower and serialize."""

    name = "completions"
    id_prefix = "cmpl-"
    dialect: Dialect = OPENAI

    def read(self, body: bytes) -> CompletionRequest:
        """Parse and validate a request's body."""
        return parse(body, CompletionRequest)

    def lower(self, asked: CompletionRequest) -> Request:
        """Lower a request to a neutral one."""
        return asked.lower()

    def serializer(
        self, head: Head, asked: CompletionRequest, request: Request, choices: list[Choice], tokenizer: Tokenizer
    ) -> "CompletionSerializer":
        """Make the serializer of a request's answer."""
        return CompletionSerializer(head, request, choices, tokenizer, echo=asked.echo)


class CompletionSerializer(Serializer[TextChoice, TextChunkChoice]):
    """Writes a choice as `text`, whole or in pieces; with `echo` the prompt precedes it."""

    def __init__(
        self, head: Head, request: Request, choices: list[Choice], tokenizer: Tokenizer, *, echo: bool
    ) -> None:
        super().__init__(head, request, choices, tokenizer)
        self._echoes: dict[int, str] = {}
        if echo:
            for choice in choices:
                text, ids = choice.prompt.text, choice.prompt.token_ids
                self._echoes[choice.index] = text if text is not None else tokenizer.decode(ids)

    def _whole(self, items: list[TextChoice], usage: Usage, beside: Facts) -> Completion:
        return {**self._head, "object": "text_completion", "choices": items, "usage": usage, **beside}

    def _chunk(self, items: list[TextChunkChoice], rest: Rest) -> CompletionChunk:
        return {**self._head, "object": "text_completion", "choices": items, **rest}

    def _chunk_choice(self, choice: Choice, delta: Delta, over: bool) -> TextChunkChoice:
        echo = self._echoes.get(choice.index, "")
        text = delta.text if choice.started else echo + delta.text
        logprobs, finish = self._logprobs(choice, delta, len(echo)), choice.finish if over else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _whole_choice(self, choice: Choice, delta: Delta) -> TextChoice:
        assert choice.finish is not None
        return {**self._chunk_choice(choice, delta, True), "finish_reason": choice.finish}

    def _bare_choice(self, index: int, text: str) -> TextChunkChoice:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _logprobs(self, choice: Choice, delta: Delta, before: int) -> LogprobsJson | None:
        if not choice.keep_logprobs:
            return None
        out = CompletionLogprobs()
        if not choice.started and choice.prompt_logprobs:
            out.add_prompt(choice, self._tokenizer)
        out.add(delta, self._tokenizer, before)
        return out.json()
