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
    """What is this API's own."""

    name = "messages"
    id_prefix = ID_PREFIX
    dialect: Dialect = ANTHROPIC

    def read(self, body: bytes) -> MessagesRequest:
        """A validated request."""
        return parse(body, MessagesRequest)

    def lower(self, asked: MessagesRequest) -> Request:
        """In neutral form."""
        return asked.lower()

    def serializer(
        self, head: Head, asked: MessagesRequest, request: Request, choices: list[Choice], tokenizer: Tokenizer
    ) -> MessageSerializer:
        """Its answer as JSON."""
        return MessageSerializer(head["id"], head["model"], choices[0], shows_thinking=asked.shows_thinking)
