"""A batch's requests to /v1/responses: nobody waits for them, and nothing of them is kept beside the batch."""

from router.api.chat import Chat
from router.api.prompts import Wanted
from router.api.responses.items import new_id
from router.api.responses.resource import resource
from router.api.responses.schema import ResponseChat, ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.api.responses.turns import as_chat
from router.errors import invalid
from router.http.body import parse
from router.http.dialect import OPENAI, Dialect
from router.relay.choice import Choice, Prompt
from router.relay.gateway import Limits
from router.text.tokenizer import Tokenizer
from router.text.tools import ToolParser


class ResponseLines:
    """What is this API's own."""

    name = "responses"
    id_prefix = "resp_"
    dialect: Dialect = OPENAI

    def __init__(self, parser: type[ToolParser]) -> None:
        self._chat = Chat(parser)

    def read(self, body: bytes) -> ResponseChat:
        """A validated request, as a chat's."""
        request = parse(body, ResponseRequest)
        if request.store and "store" in request.model_fields_set:
            raise invalid("'store' true is not supported in a batch, whose output holds the answers", "store")
        for name in ("background", "previous_response_id"):
            if getattr(request, name):
                raise invalid(f"'{name}' is not supported in a batch", name, "unsupported_parameter")
        if request.truncation != "disabled":
            raise invalid("'truncation' must be 'disabled' in a batch", "truncation", "unsupported_value")
        asked = [item.plain() for item in request.input]
        return request.model_copy(update={"store": False}).as_chat(as_chat(asked, 0, request.instructions))

    def count_prompts(self, request: ResponseChat) -> int:
        """Always one."""
        return 1

    async def prompts(self, request: ResponseChat, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
        """The rendered conversation."""
        return await self._chat.prompts(request, tokenizer, limits)

    def wanted(self, request: ResponseChat) -> Wanted:
        """As of a chat."""
        return self._chat.wanted(request)

    def shape(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: ResponseChat,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> ResponseSerializer:
        """Its JSON."""
        body = resource(request.asked, new_id("resp"), created, model)
        return ResponseSerializer(body, choices[0], tokenizer, None)
