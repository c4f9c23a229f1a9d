"""/v1/messages: a chat request in another shape, so all but the shape is the chat API's."""

from router.api.anthropic.schema import MessagesChat, MessagesRequest
from router.api.anthropic.serializer import ID_PREFIX, MessageSerializer
from router.api.chat import Chat
from router.api.prompts import Wanted
from router.http.body import parse
from router.http.dialect import ANTHROPIC, Dialect
from router.relay.choice import Choice, Prompt
from router.relay.gateway import Limits
from router.text.tokenizer import Tokenizer
from router.text.tools import ToolParser


class Messages:
    """What is this API's own."""

    name = "messages"
    id_prefix = ID_PREFIX
    dialect: Dialect = ANTHROPIC

    def __init__(self, parser: type[ToolParser]) -> None:
        self._chat = Chat(parser)

    def read(self, body: bytes) -> MessagesChat:
        """A validated request, as a chat's."""
        return parse(body, MessagesRequest).as_chat()

    def count_prompts(self, request: MessagesChat) -> int:
        """Always one."""
        return 1

    async def prompts(self, request: MessagesChat, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
        """The rendered conversation."""
        return await self._chat.prompts(request, tokenizer, limits)

    def wanted(self, request: MessagesChat) -> Wanted:
        """As of a chat."""
        return self._chat.wanted(request)

    def shape(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: MessagesChat,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> MessageSerializer:
        """Its JSON."""
        return MessageSerializer(answer_id, model, choices[0], shows_thinking=request.shows_thinking)
