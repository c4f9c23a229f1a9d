"""What the server publishes of itself at /openapi.json: OpenAPI 3.1, made from the models that check requests."""

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from router.api.dialect import ANTHROPIC, dialect_of
from router.api.table import ENDPOINTS
from router.openapi_paths import EVENTS, JSON, PLAIN, Plain

_REF = "#/components/schemas/{model}"
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}
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


def document(served: str, *, keyed: bool) -> dict[str, Any]:
    """The whole document. served: the model's name. keyed: the APIs ask for a key."""
    names, defined = models_json_schema([(e.model, "validation") for e in ENDPOINTS], ref_template=_REF)
    for schema in defined["$defs"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"]["enum"] = [served, "auto"]
    paths: dict[str, dict[str, Any]] = {}
    for plain in PLAIN:
        paths.setdefault(plain.path, {})[plain.method] = _plain(plain, keyed=keyed)
    for endpoint in ENDPOINTS:
        body = names[endpoint.model, "validation"]
        paths.setdefault(endpoint.path, {})["post"] = _ask(endpoint.path, endpoint.model, body, keyed=keyed)
    schemas = {**defined["$defs"], "OpenAIError": _OPENAI_ERROR, "AnthropicError": _ANTHROPIC_ERROR}
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    components: dict[str, Any] = {"schemas": schemas} | ({"securitySchemes": schemes} if keyed else {})
    return {
        "openapi": "3.1.0",
        "info": {"title": "ling-cluster router", "version": "1"},
        "paths": paths,
        "components": components,
    }


def _plain(plain: Plain, *, keyed: bool) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", plain.path)
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    parameters += [{"name": n, "in": "query", "required": False, "schema": s} for n, s in plain.query.items()]
    out: dict[str, Any] = {
        "summary": plain.summary,
        "parameters": parameters,
        "responses": _responses(plain.path, plain.kinds, keyed=keyed, work=plain.method != "get"),
    }
    if plain.path == "/ready":
        out["responses"]["503"] = {"description": "Not ready, and why", "content": {JSON: {}}}
    if plain.form is not None:
        out["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": plain.form}}}
    return out | _security(plain.path, keyed=keyed)


def _ask(path: str, model: type[BaseModel], body: dict[str, Any], *, keyed: bool) -> dict[str, Any]:
    kinds = (JSON, EVENTS) if "stream" in model.model_fields else (JSON,)
    out = {
        "summary": (model.__doc__ or "").strip().split("\n")[0],
        "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
        "responses": _responses(path, kinds, keyed=keyed, work=True),
    }
    return out | _security(path, keyed=keyed)


def _responses(path: str, kinds: tuple[str, ...], *, keyed: bool, work: bool) -> dict[str, Any]:
    name = "AnthropicError" if dialect_of(path) is ANTHROPIC else "OpenAIError"
    error = {JSON: {"schema": {"$ref": _REF.format(model=name)}}}
    told = _ANY | (_KEYED if keyed else {}) | (_WORK if work else {})
    return {
        "200": {"description": "The answer", "content": {kind: {} for kind in kinds}},
        **{status: {"description": text, "content": error} for status, text in told.items()},
    }


def _security(path: str, *, keyed: bool) -> dict[str, Any]:
    return {"security": [{"bearer": []}, {"key": []}]} if keyed and path not in (*_OPEN, "/") else {}
