"""/tokenize, /detokenize and /v1/messages/count_tokens: what the tokenizer and the template make of a request."""

import asyncio
from typing import Any

from pydantic import Field, model_validator

from router.api.answers.anthropic import TokenCount
from router.api.answers.server import Detokenized, Tokenized
from router.api.anthropic.schema import CountRequest
from router.api.chat import conversation
from router.api.chat_schema import ChatRequest
from router.api.conversation import Message, Tool
from router.api.generate import check_model
from router.api.schema import Strict, TokenId
from router.http.dialect import ANTHROPIC, OPENAI, Dialect
from router.relay.gateway import Gateway


class TokenizeRequest(Strict):
    """Body of /tokenize: a text, or a conversation as the chat API would render it."""

    model: str = "auto"
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] = Field(default_factory=list, max_length=1024)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=64)
    add_special_tokens: bool = Field(True, description="of a text; a template writes its own")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """Body of /detokenize."""

    model: str = "auto"
    tokens: list[TokenId]


class Tokenize:
    """A text's token ids."""

    name = "tokenize"
    dialect: Dialect = OPENAI
    model = TokenizeRequest

    async def answer(self, request: TokenizeRequest, gateway: Gateway) -> Tokenized:
        """`max_model_len` is None while no worker is live."""
        check_model(request.model, gateway.config)
        tokenizer = gateway.tokenizer
        if request.prompt is not None:
            ids = await tokenizer.encode(request.prompt, add_special_tokens=request.add_special_tokens)
        else:
            fields = {"model", "messages", "tools", "chat_template_kwargs"}
            chat = ChatRequest.model_validate({name: getattr(request, name) for name in fields})
            ids = (await conversation(chat, tokenizer)).token_ids
        longest = gateway.limits().max_model_len if any(gateway.table.live().values()) else None
        answer: Tokenized = {"count": len(ids), "max_model_len": longest, "tokens": list(ids)}
        if request.return_token_strs:
            answer["token_strs"] = [tokenizer.piece(i).text for i in ids]
        return answer


class Detokenize:
    """Token ids' text, special tokens too."""

    name = "detokenize"
    dialect: Dialect = OPENAI
    model = DetokenizeRequest

    async def answer(self, request: DetokenizeRequest, gateway: Gateway) -> Detokenized:
        """Ids without a token are nothing."""
        check_model(request.model, gateway.config)
        text = await asyncio.to_thread(gateway.tokenizer.decode, request.tokens, skip_special=False)
        return {"prompt": text}


class CountTokens:
    """How many tokens a message's prompt would be."""

    name = "count_tokens"
    dialect: Dialect = ANTHROPIC
    model = CountRequest

    async def answer(self, request: CountRequest, gateway: Gateway) -> TokenCount:
        """Of the very prompt /v1/messages would compute."""
        check_model(request.model, gateway.config)
        prompt = await conversation(request.as_chat(), gateway.tokenizer)
        return {"input_tokens": len(prompt.token_ids)}
