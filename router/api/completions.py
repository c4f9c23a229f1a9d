"""/v1/completions."""

from typing import Any

from router.api.body import parse
from router.api.completion_schema import CompletionRequest
from router.api.dialect import OPENAI, Dialect
from router.api.logprobs import CompletionLogprobs
from router.api.prompts import Wanted, encode_prompts, raw_prompts
from router.api.shape import Shape
from router.choice import Choice, Delta, Prompt
from router.gateway import Limits
from router.tokens import Tokenizer


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
    ) -> Shape:
        """Its JSON."""
        return CompletionShape(answer_id, created, model, request, choices, tokenizer)


class CompletionShape(Shape):
    """`text`, whole or in pieces; with `echo` the prompt stands before the first of it."""

    object_whole = "text_completion"
    object_chunk = "text_completion"

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

    def _chunk_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        echo = self._echoes.get(choice.index, "")
        text = delta.text if choice.started else echo + delta.text
        return {"text": text, "logprobs": self._logprobs(choice, delta, len(echo))}

    def _whole_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        return self._chunk_choice(choice, delta)

    def _bare_choice(self, text: str) -> dict[str, Any]:
        return {"text": text, "logprobs": None}

    def _logprobs(self, choice: Choice, delta: Delta, before: int) -> dict[str, Any] | None:
        if not choice.keep_logprobs:
            return None
        out = CompletionLogprobs()
        if not choice.started and choice.prompt_logprobs:
            out.add_prompt(choice, self._tokenizer)
        out.add(delta, self._tokenizer, before)
        return out.json()
