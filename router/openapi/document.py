"""What the server publishes of itself at /openapi.json: OpenAPI 3.1, made from the models that check requests and
the types of the dicts that answers are.

The schema of `text/event-stream` is that of one event, as OpenAPI 3.2 sees it: an object of its fields, whose `data` is
a string with a `contentSchema`.
"""

import re
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter

from router.api.answers.anthropic import AnthropicError
from router.api.answers.server import Unready
from router.errors import OpenAIError
from router.http.dialect import ANTHROPIC, dialect_of
from router.openapi.answers import ANSWERS
from router.openapi.fields import ENDPOINTS
from router.openapi.paths import EVENTS, HTML, JSON, PLAIN, TEXT, Plain

Schema = dict[str, Any]
_REF = "#/components/schemas/{model}"
# What any path may answer; what those may that change or compute something; what those may that ask for a key.
_ANY = {
    "400": "Something asked for can't be; the message names it",
    "404": "There is no such path, model or thing",
    "408": "The request did not arrive in time",
    "431": "The head of the request is too long",
    "500": "The server failed",
}
_WORK = {
    "409": "Something else still needs it",
    "413": "The body is too big",
    "429": "A limit is reached; Retry-After says for how long",
    "503": "No worker can take it now",
    "504": "It took too long",
}
_KEYED = {"401": "The API key is missing or unknown", "429": _WORK["429"]}
_OPEN = ("/health", "/ready", "/status", "/metrics", "/live", "/openapi.json")


_EVENTS_TOLD = "As text/event-stream: server-sent events. The schema is that of one event, whose `data` is JSON."


@cache  # made in a quarter of a second
def document(served: str, *, keyed: bool) -> Schema:
    """The whole document, to be left as it is. served: the model's name. keyed: the APIs ask for a key."""
    schemas = _Schemas(served)
    paths: dict[str, Schema] = {}
    for plain in PLAIN:
        paths.setdefault(plain.path, {})[plain.method] = _plain(plain, schemas, keyed=keyed)
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})["post"] = _ask(endpoint.path, endpoint.model, schemas, keyed=keyed)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    components: Schema = {"schemas": schemas.named} | ({"securitySchemes": schemes} if keyed else {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "ling-cluster router", "version": "1"},
        "paths": paths,
        "components": components,
    }


class _Schemas:
    """Of all types. named: those that others refer to; each object is of the properties it names and no other."""

    def __init__(self, served: str) -> None:
        types: list[Any] = [endpoint.model for endpoint in ENDPOINTS]
        types += [kind for answer in ANSWERS.values() for kind in (answer.whole, answer.event) if kind is not None]
        types += [OpenAIError, AnthropicError, Unready]
        self._types = types
        found, defined = TypeAdapter.json_schemas(
            [(i, "validation", TypeAdapter(kind)) for i, kind in enumerate(types)], ref_template=_REF
        )
        self._found = [found[i, "validation"] for i in range(len(types))]
        self.named: dict[str, Schema] = defined["$defs"]
        for schema in self.named.values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
        for model in (endpoint.model for endpoint in ENDPOINTS):
            if "model" in model.model_fields:
                self.named[model.__name__]["properties"]["model"]["enum"] = [served, "auto"]

    def of(self, kind: Any) -> Schema:
        """A type's."""
        return self._found[self._types.index(kind)]

    def event(self, kind: Any) -> Schema:
        """Of a server-sent event with such data. What names its type in the data names it in `event` too."""
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


def _plain(plain: Plain, schemas: _Schemas, *, keyed: bool) -> Schema:
    names = re.findall(r"\{(\w+)\}", plain.path)
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    parameters += [{"name": n, "in": "query", "required": False, "schema": s} for n, s in plain.query.items()]
    work = plain.method != "get"
    out: Schema = {
        "summary": plain.summary,
        "parameters": parameters,
        "responses": _responses(plain.method, plain.path, plain.kinds, schemas, keyed=keyed, work=work),
    }
    if plain.path == "/ready":
        unready = {JSON: {"schema": schemas.of(Unready)}}
        out["responses"]["503"] = {"description": "Not ready, and why", "content": unready}
    if plain.form is not None:
        out["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": plain.form}}}
    return out | _security(plain.path, keyed=keyed)


def _ask(path: str, model: type[BaseModel], schemas: _Schemas, *, keyed: bool) -> Schema:
    kinds = (JSON, EVENTS) if "stream" in model.model_fields else (JSON,)
    out = {
        "summary": (model.__doc__ or "").strip().split("\n")[0],
        "requestBody": {"required": True, "content": {JSON: {"schema": schemas.of(model)}}},
        "responses": _responses("post", path, kinds, schemas, keyed=keyed, work=True),
    }
    return out | _security(path, keyed=keyed)


def _responses(
    method: str, path: str, kinds: tuple[str, ...], schemas: _Schemas, *, keyed: bool, work: bool
) -> dict[str, Schema]:
    error = {JSON: {"schema": schemas.of(AnthropicError if dialect_of(path) is ANTHROPIC else OpenAIError)}}
    told = _ANY | (_KEYED if keyed else {}) | (_WORK if work else {})
    return {
        "200": {
            "description": f"The answer. {_EVENTS_TOLD}" if EVENTS in kinds else "The answer",
            "content": {kind: _content(method, path, kind, schemas) for kind in kinds},
        },
        **{status: {"description": text, "content": error} for status, text in told.items()},
    }


def _content(method: str, path: str, kind: str, schemas: _Schemas) -> Schema:
    if kind == JSON:
        return {"schema": schemas.of(ANSWERS[method, path].whole)}
    if kind == EVENTS:
        return {"schema": schemas.event(ANSWERS[method, path].event)}
    return {"schema": {"type": "string"}} if kind in (TEXT, HTML) else {}  # bytes are of any kind


def _security(path: str, *, keyed: bool) -> Schema:
    return {"security": [{"bearer": []}, {"key": []}]} if keyed and path not in (*_OPEN, "/") else {}
