"""Requests to /v1/responses from a batch. No client waits for them, and only the batch stores their answers."""

from router.api.answers.generated import Head
from router.api.request import Request
from router.api.responses.ids import new_id
from router.api.responses.items import ItemReference
from router.api.responses.resource import resource
from router.api.responses.schema import ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.errors import fault, invalid
from router.http.body import parse
from router.http.dialect import OPENAI, Dialect
from router.relay.choice import Choice
from router.text.tokenizer import Tokenizer


class ResponseLines:
    """The responses API's part of generating for a batch: how to read, lower and serialize."""

    name = "responses"
    id_prefix = "resp_"
    dialect: Dialect = OPENAI

    def read(self, body: bytes) -> ResponseRequest:
        """Parse and validate a request's body."""
        request = parse(body, ResponseRequest)
        if request.store and "store" in request.model_fields_set:
            raise invalid("'store' true is not supported in a batch, whose output holds the answers", "store")
        for name in ("background", "previous_response_id"):
            if getattr(request, name):
                raise invalid(f"'{name}' is not supported in a batch", name, "unsupported_parameter")
        if request.truncation != "disabled":
            raise invalid("'truncation' must be 'disabled' in a batch", "truncation", "unsupported_value")
        for i, item in enumerate(request.input):
            if isinstance(item, ItemReference):
                raise fault(("input", i, "type"), "'item_reference' is not supported in a batch", "unsupported_value")
        return request.model_copy(update={"store": False})

    def lower(self, asked: ResponseRequest) -> Request:
        """Lower a request to a neutral one."""
        return asked.lower((), [item.plain() for item in asked.input if not isinstance(item, ItemReference)])

    def serializer(
        self, head: Head, asked: ResponseRequest, request: Request, choices: list[Choice], tokenizer: Tokenizer
    ) -> ResponseSerializer:
        """Make the serializer of a request's answer."""
        body = resource(asked, new_id("resp"), head["created"], head["model"])
        return ResponseSerializer(body, choices[0], tokenizer, None)
