"""/v1/completions."""

from router.api.answers.generated import (
    Completion,
    CompletionChunk,
    Facts,
    Rest,
    TextChoice,
    TextChunkChoice,
    Usage,
)
from router.api.answers.generated import CompletionLogprobs as LogprobsJson
from router.api.completion_schema import CompletionRequest
from router.api.logprobs import CompletionLogprobs
from router.api.prompts import Wanted, encode_prompts, raw_prompts
from router.api.serializer import Serializer
from router.http.body import parse
from router.http.dialect import OPENAI, Dialect
from router.relay.choice import Choice, Delta, Prompt
from router.relay.gateway import Limits
from router.text.tokenizer import Tokenizer


class Completions:
    """What is this API's own."""

    name = "completions"
    id_prefix = "cmpl-"
    dialect: Dialect = OPENAI

    def read(self, body: bytes) -> CompletionRequest:
        """A validated request."""
        return parse(body, CompletionRequest)

    def count_prompts(self, request: CompletionRequest) -> int:
        """How many prompts the request carries."""
        return len(raw_prompts(request.prompt))

    async def prompts(self, request: CompletionRequest, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
        """The prompts as token ids."""
        return await encode_prompts(raw_prompts(request.prompt), tokenizer, limits)

    def wanted(self, request: CompletionRequest) -> Wanted:
        """Length and log-probabilities; an echoed prompt comes with its own."""
        echoed = request.logprobs if request.echo else None
        return Wanted(request.max_tokens, request.logprobs, echoed, form=request.content_form)

    def shape(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: CompletionRequest,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> "CompletionSerializer":
        """Its JSON."""
        return CompletionSerializer(answer_id, created, model, request, choices, tokenizer)


class CompletionSerializer(Serializer[TextChoice, TextChunkChoice]):
    """`text`, whole or in pieces; with `echo` the prompt stands before the first of it."""

    def __init__(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: CompletionRequest,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__(answer_id, created, model, request, choices, tokenizer)
        self._echoes: dict[int, str] = {}
        if request.echo:
            for choice in choices:
                prompt = choice.prompt
                self._echoes[choice.index] = (
                    prompt.text if prompt.text is not None else tokenizer.decode(prompt.token_ids)
                )

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
