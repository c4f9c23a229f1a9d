"""The paths that take no JSON body, as OpenAPI describes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON, EVENTS, TEXT, HTML = "application/json", "text/event-stream", "text/plain", "text/html"
_AFTER = {"type": "string", "minLength": 1}
_ORDER = {"type": "string", "enum": ["asc", "desc"]}
_INCLUDE = {
    "type": "array",
    "items": {"enum": ["message.output_text.logprobs", "reasoning.encrypted_content"]},
    "minItems": 1,
}


def _up_to(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": most}


@dataclass(frozen=True, slots=True)
class Plain:
    """One of them. query: its parameters' schemas. kinds: media types of its answer. form: schema of what it takes."""

    method: str
    path: str
    summary: str
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kinds: tuple[str, ...] = (JSON,)
    form: Mapping[str, Any] | None = None


_FILE = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"const": "batch"}},
    "additionalProperties": False,
}
_SHAPED = "with an `anthropic-version` header in that API's shape"
PLAIN = (
    Plain("get", "/", "Where to go from here; for browsers, a page of live figures", kinds=(JSON, HTML)),
    Plain("get", "/live", "What /metrics said over the last five minutes", {"since": {"type": "number"}}),
    Plain("get", "/v1/models", f"The served model, as a list; {_SHAPED}"),
    Plain("get", "/v1/models/{name}", f"The served model by its name; {_SHAPED}"),
    Plain("get", "/health", "Whether the process lives"),
    Plain("get", "/ready", "Whether a request could be served now"),
    Plain("get", "/status", "Pools, workers, ranks and their figures"),
    Plain("get", "/metrics", "Figures for Prometheus", kinds=(TEXT,)),
    Plain("get", "/openapi.json", "This document"),
    Plain(
        "get",
        "/v1/responses/{response_id}",
        "A kept response, or its events",
        {"stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0}, "include": _INCLUDE},
        (JSON, EVENTS),
    ),
    Plain("delete", "/v1/responses/{response_id}", "Forget a response"),
    Plain("post", "/v1/responses/{response_id}/cancel", "End a response that runs in the background"),
    Plain(
        "get",
        "/v1/responses/{response_id}/input_items",
        "What a response was asked with",
        {"after": _AFTER, "limit": _up_to(100), "order": _ORDER, "include": _INCLUDE},
    ),
    Plain("post", "/v1/files", "Upload a file of requests", form=_FILE),
    Plain(
        "get",
        "/v1/files",
        "Files, newest first",
        {
            "after": _AFTER,
            "limit": _up_to(10_000),
            "order": _ORDER,
            "purpose": {"type": "string", "enum": ["batch", "batch_output"]},
        },
    ),
    Plain("get", "/v1/files/{file_id}", "A file's record"),
    Plain("delete", "/v1/files/{file_id}", "Forget a file"),
    Plain("get", "/v1/files/{file_id}/content", "A file's bytes", kinds=("application/octet-stream",)),
    Plain("get", "/v1/batches", "Batches, newest first", {"after": _AFTER, "limit": _up_to(100)}),
    Plain("get", "/v1/batches/{batch_id}", "How far a batch has come"),
    Plain("post", "/v1/batches/{batch_id}/cancel", "Start no further line of a batch"),
)
