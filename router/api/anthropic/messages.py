"""/v1/messages."""

from router.api.answers.generated import Head
from router.api.anthropic.schema import MessagesRequest
from router.api.anthropic.serializer import ID_PREFIX, MessageSerializer
from router.api.request import Request
from router.http.body import parse
from router.http.dialect import ANTHROPIC, Dialect
from router.relay.choice import Choice
from router.text.tokenizer import Tokenizer


class Messages:
    """The messages API's part of generating: how to read, lower and serialize."""

    name = "messages"
    id_prefix = ID_PREFIX
    dialect: Dialect = ANTHROPIC

    def read(self, body: bytes) -> MessagesRequest:
        """Parse and validate a request's body."""
        return parse(body, MessagesRequest)

    def lower(self, asked: MessagesRequest) -> Request:
        """Lower a request to a neutral one."""
        return asked.lower()

    def serializer(
        self, head: Head, asked: MessagesRequest, request: Request, choices: list[Choice], tokenizer: Tokenizer
    ) -> MessageSerializer:
        """Make the serializer of a request's answer."""
        return MessageSerializer(head["id"], head["model"], choices[0], shows_thinking=asked.shows_thinking)
