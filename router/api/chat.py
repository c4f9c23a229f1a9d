"""/v1/chat/completions."""

from typing import Any

from router.api.logprobs import chat_logprobs
from router.api.prompts import Wanted
from router.api.schema import ChatRequest
from router.api.shape import Shape
from router.choice import Choice, Delta, Prompt
from router.errors import invalid
from router.gateway import Limits
from router.tokens import Tokenizer


class Chat:
    """What is this API's own."""

    name = "chat"
    id_prefix = "chatcmpl-"
    model = ChatRequest

    def count_prompts(self, request: ChatRequest) -> int:
        """Always one."""
        return 1

    async def prompts(self, request: ChatRequest, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
        """The rendered conversation."""
        if tokenizer.template is None:
            raise invalid("this checkpoint has no chat template: use /v1/completions", "messages")
        text = tokenizer.template.render(request.template_messages())
        token_ids = await tokenizer.encode(text, add_special_tokens=False)
        if not token_ids:
            raise invalid("the chat template makes no tokens of these messages", "messages", "empty_prompt")
        return [Prompt(token_ids)]

    def wanted(self, request: ChatRequest) -> Wanted:
        """Length and log-probabilities."""
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        return Wanted(request.max_completion_tokens or request.max_tokens, logprobs)

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

    def _chunk_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {} if choice.started else {"role": "assistant", "content": ""}
        if delta.text:
            said["content"] = delta.text
        return {"delta": said, "logprobs": self._logprobs(choice, delta)}

    def _whole_choice(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(choice, delta)}

    def _bare_choice(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}, "logprobs": None}

    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any] | None:
        return chat_logprobs(delta.logprobs, self._tokenizer) if choice.keep_logprobs else None
