"""The document at /openapi.json: OpenAPI 3.1, made from the models that validate requests and the types of answers.

The schema of `text/event-stream` describes one event, as in OpenAPI 3.2: an object with the event's fields, whose
`data` is a string with a `contentSchema`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.anthropic import AnthropicError
from router.api.answers.server import Unready
from router.config import RouterConfig
from router.endpoints import BYTES, ENDPOINTS, EVENTS, JSON, Endpoint
from router.errors import OpenAIError
from router.http.dialect import ANTHROPIC, dialect_of
from router.http.json import encode
from wire.version import VERSION

Schema = dict[str, Any]
_REF = "#/components/schemas/{model}"
# Errors of any path, then of paths that change or compute something, then of paths that need a key.
_ANY = {
    "400": "The request asks for something impossible; the message names it",
    "404": "There is no such path, model or object",
    "408": "The request did not arrive in time",
    "431": "The head of the request is too long",
    "500": "The server failed",
}
_WORK = {
    "403": "A quota is exhausted; the message names it",
    "409": "The object is still in use",
    "413": "The body is too big",
    "415": "The body's content-encoding can't be read",
    "422": "Several workers in a row ended while they computed this request; it is not retried",
    "429": "A limit is reached; Retry-After says how long to wait",
    "503": "No worker can take the request now, or the server's records can't be reached",
    "504": "The answer took too long",
}
_KEYED = {"401": "The API key is missing or unknown", "429": _WORK["429"]}
_EVENTS_TOLD = "As text/event-stream: server-sent events. The schema describes one event, whose `data` is JSON."


@cache  # it takes a quarter of a second
def document(served: str, *, keyed: bool) -> Schema:
    """The whole document; callers must not change it. served: the model's name. keyed: whether the APIs need a key."""
    schemas = _Schemas(served)
    paths: dict[str, Schema] = {}
    for endpoint in ENDPOINTS:
        path = re.sub(r":\w+}", "}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, schemas, keyed and endpoint.keyed)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    components: Schema = {"schemas": schemas.named} | ({"securitySchemes": schemes} if keyed else {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "ling-cluster router", "version": VERSION},
        "paths": paths,
        "components": components,
    }


def publish(config: RouterConfig) -> Callable[[Request], Awaitable[Response]]:
    """The handler of /openapi.json."""

    async def answer(request: Request) -> Response:
        # Made at the first request, in a thread, so that neither the router's start nor its streams wait for it.
        made = await asyncio.to_thread(document, config.served_model_name, keyed=config.api_keys is not None)
        return Response(await asyncio.to_thread(encode, made), media_type="application/json")

    return answer


class _Schemas:
    """The schemas of all types; an object allows only the properties it names.

    named: the schemas that others refer to.
    """

    def __init__(self, served: str) -> None:
        bodies = [endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None]
        types: list[Any] = [*bodies, OpenAIError, AnthropicError, Unready]
        types += [kind for e in ENDPOINTS for kind in (e.answer, e.event) if kind is not None]
        self._types = types
        found, defined = TypeAdapter.json_schemas(
            [(i, "validation", TypeAdapter(kind)) for i, kind in enumerate(types)], ref_template=_REF
        )
        self._found = [found[i, "validation"] for i in range(len(types))]
        self.named: dict[str, Schema] = defined["$defs"]
        for schema in self.named.values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
        for model in bodies:
            if "model" in model.model_fields:
                self.named[model.__name__]["properties"]["model"]["enum"] = [served, "auto"]

    def of(self, kind: Any) -> Schema:
        """The schema of a type."""
        return self._found[self._types.index(kind)]

    def event(self, kind: Any) -> Schema:
        """The schema of a server-sent event with data of this type. If the data has a `type`, `event` repeats it."""
        schema, options = self.of(kind), []
        for one in schema.get("anyOf", [schema]):
            data = {"type": "string", "contentMediaType": JSON, "contentSchema": one}
            told = self.named[one["$ref"].rsplit("/", 1)[1]]["properties"].get("type")
            if told is None:
                options.append(_fields({"data": data}))
            else:
                names = told.get("enum", [told.get("const")])
                options.append(_fields({"event": {"enum": names}, "data": data}))
        if all("event" not in option["properties"] for option in options):
            options.append(_fields({"data": {"const": "[DONE]", "description": "The end of the stream"}}))
        return {"anyOf": options}


def _fields(properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _operation(endpoint: Endpoint, schemas: _Schemas, keyed: bool) -> Schema:
    content: Schema = {}
    if endpoint.answer is not None:
        content[JSON] = {"schema": schemas.of(endpoint.answer)}
    if endpoint.event is not None:
        content[EVENTS] = {"schema": schemas.event(endpoint.event)}
    for kind in endpoint.media:
        content[kind] = {} if kind == BYTES else {"schema": {"type": "string"}}
    out: Schema = {"summary": endpoint.summary, "responses": _responses(endpoint, content, schemas, keyed)}
    names = re.findall(r"\{(\w+)", endpoint.path)
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    query = endpoint.query.model_json_schema().get("properties", {})
    parameters += [{"name": n, "in": "query", "required": False, "schema": _plain(s)} for n, s in query.items()]
    if parameters:
        out["parameters"] = parameters
    if endpoint.body is not None:
        out["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas.of(endpoint.body)}}}
    if endpoint.raw:
        out["requestBody"] = {"required": True, "content": {BYTES: {}}}
    if endpoint.form is not None:
        form = {"multipart/form-data": {"schema": _form(endpoint.form)}}
        out["requestBody"] = {"required": True, "content": form}
    if keyed:
        out["security"] = [{"bearer": []}, {"key": []}]
    return out


def _form(model: type[BaseModel]) -> Schema:
    """The schema of a form's fields. Forms write a field of an object in brackets: `a[b]`."""
    schema = model.model_json_schema()
    flat = {name: field for name, field in schema["properties"].items() if "anyOf" not in field}
    for name, field in flat.items():
        if field.get("type") == "file":
            flat[name] = {"type": "string", "format": "binary"}
    return {"type": "object", "required": schema["required"], "properties": flat, "additionalProperties": False}


def _plain(schema: Schema) -> Schema:
    """The schema of a query parameter without null, because a query can't send null."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    return {name: value for name, value in options[0].items() if name not in ("default", "title")}


def _responses(endpoint: Endpoint, content: Schema, schemas: _Schemas, keyed: bool) -> dict[str, Schema]:
    dialect = dialect_of(endpoint.path)
    error = {JSON: {"schema": schemas.of(AnthropicError if dialect is ANTHROPIC else OpenAIError)}}
    told = _ANY | (_KEYED if keyed else {}) | (_WORK if endpoint.method != "GET" else {})
    description = f"The answer. {_EVENTS_TOLD}" if EVENTS in content else "The answer"
    answers: dict[str, Schema] = {"200": {"description": description, "content": content}}
    answers |= {status: {"description": text, "content": error} for status, text in told.items()}
    if endpoint.path == "/ready":
        unready = {JSON: {"schema": schemas.of(Unready)}}
        answers["503"] = {"description": "Not ready, and why", "content": unready}
    return answers
