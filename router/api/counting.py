"""/tokenize and /detokenize: a request as the tokenizer and the chat template encode it."""

import asyncio
from functools import partial
from typing import Any

from pydantic import Field, model_validator

from router.api.answering import check_model
from router.api.answers.server import Detokenized, Tokenized
from router.api.chat_messages import FunctionTool, Message
from router.api.chat_schema import ChatRequest
from router.api.render import conversation_prompt
from router.api.request import Names
from router.api.schema import MAX_TURNS, Strict, TokenId
from router.errors import invalid
from router.relay.gateway import Gateway

_OF_MESSAGES = {"tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"}


class TokenizeRequest(Strict):
    """Body of /tokenize: a text, or a conversation as the chat API would render it."""

    model: str = "auto"
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_TURNS)
    tools: list[FunctionTool] = Field(default_factory=list, max_length=1024)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=64)
    add_generation_prompt: bool = Field(True, description="false: the prompt ends after the last message")
    continue_final_message: bool = Field(
        False, description="the answer continues the last message, which must be the assistant's"
    )
    add_special_tokens: bool = Field(True, description="adds them to `prompt`; a chat template writes its own")
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise invalid("send either 'prompt' or 'messages'", "prompt")
        beside = sorted(_OF_MESSAGES & self.model_fields_set) if self.prompt is not None else []
        if beside:
            raise invalid(f"'{beside[0]}' needs 'messages': a prompt is encoded as it is", beside[0])
        return self


class DetokenizeRequest(Strict):
    """Body of /detokenize."""

    model: str = "auto"
    tokens: list[TokenId]


async def tokenize(request: TokenizeRequest, gateway: Gateway, tenant: str) -> Tokenized:
    """Encode a text or a conversation."""
    check_model(request.model, gateway.config)
    tokenizer = gateway.tokenizer
    if request.prompt is not None:
        text, add = request.prompt, request.add_special_tokens
        ids = await gateway.apart(len(text), tokenizer.encode, text, add_special_tokens=add)
    else:
        fields = request.model_fields_set & ChatRequest.model_fields.keys() | {"model"}
        chat = ChatRequest.model_validate({name: getattr(request, name) for name in fields})
        asked, recall = chat.conversation(), partial(gateway.exact.recall, tenant)
        ids = (await gateway.apart(asked.characters, conversation_prompt, asked, Names(), tokenizer, recall)).token_ids
    longest = gateway.limits().max_model_len if any(gateway.table.live().values()) else gateway.config.max_model_len
    answer: Tokenized = {"count": len(ids), "max_model_len": longest, "tokens": list(ids)}
    if request.return_token_strs:
        answer["token_strs"] = [tokenizer.piece(i).text for i in ids]
    return answer


async def detokenize(request: DetokenizeRequest, gateway: Gateway, tenant: str) -> Detokenized:
    """Decode token ids, including special tokens. Ids without a token add no text."""
    check_model(request.model, gateway.config)
    text = await asyncio.to_thread(gateway.tokenizer.decode, request.tokens, skip_special=False)
    return {"prompt": text}
