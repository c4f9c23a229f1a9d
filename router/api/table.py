"""Every field of every API, and what becomes of it here, as Markdown: `python -m router.api.table > docs/API.md`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from router.api.anthropic.schema import CountRequest, MessagesRequest
from router.api.chat_schema import ChatRequest
from router.api.counting import DetokenizeRequest, TokenizeRequest
from router.api.schema import CompletionRequest

_TEXT = "the model reads and writes text alone"
_REMOTE = "the server runs no tools and stores nothing"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path. refused: fields its API has elsewhere, and why they are a 400 here."""

    path: str
    model: type[BaseModel]
    refused: Mapping[str, str]


_MESSAGES_REFUSED = {
    "speed": "there is one speed",
    "user_profile_id": _REMOTE,
    "workspace_id": _REMOTE,
}
ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions",
        ChatRequest,
        {
            "audio": _TEXT,
            "function_call": "replaced by `tool_choice`",
            "functions": "replaced by `tools`",
            "moderation": "nothing is moderated",
            "prediction": "no draft is taken from the client",
            "prompt_cache_options": "prompts are cached by themselves",
            "web_search_options": _REMOTE,
        },
    ),
    Endpoint("/v1/completions", CompletionRequest, {}),
    Endpoint(
        "/v1/messages",
        MessagesRequest,
        {
            **_MESSAGES_REFUSED,
            "container": _REMOTE,
            "diagnostics": "there are none in an answer",
            "inference_geo": "there is one place",
            "mcp_servers": _REMOTE,
        },
    ),
    Endpoint("/v1/messages/count_tokens", CountRequest, _MESSAGES_REFUSED),
    Endpoint("/tokenize", TokenizeRequest, {}),
    Endpoint("/detokenize", DetokenizeRequest, {}),
)

_INTRO = """\
# The APIs, field by field

Made by `python -m router.api.table`; a test holds it to the code. **honoured**: it does what its API says, within the
values given. **only …**: other values are refused. **meaningless**: accepted, and it changes nothing here. **refused**:
a 400 that names the field; so is every field that is not listed. A field with `null` counts as not sent.

## What tools come to

Calls are told from text by the parser `router.tool_parser` names (`qwen25`, which `hermes` is another name of):
`<tool_call>` and `</tool_call>` never show, white space around calls is dropped, all other text stays. In
`/v1/chat/completions` a call's name leaves when its arguments begin, and these as they form, exactly as the model
writes them. A call whose JSON breaks before its arguments begin is text; one that breaks within them keeps what was
written, up to the end marker, as its arguments. In `/v1/messages` a call leaves when it is whole: its clients take an
`input` for sound. One whose arguments are no JSON object is text there, one cut by the token limit too.

`<think>…</think>` at the beginning of an answer is `reasoning_content` of a chat message, and a `thinking` block of
`/v1/messages` where `thinking` asks for it; else it is left out.

With a file of keys (`router.api_keys`, lines of `python -m router.keys TENANT`, read again when it changes) all paths
below need one, as `Authorization: Bearer KEY` or `x-api-key: KEY`; without the file no key is asked for.

Errors come in the shape of the API called: `{"error": {"message", "type", "param", "code"}}`, and below `/v1/messages`
`{"type": "error", "error": {"type", "message"}, "request_id"}`. An error amid a stream is its last event.
"""


def table() -> str:
    """The whole document."""
    out = [_INTRO]
    shown: set[str] = set()
    for endpoint in ENDPOINTS:
        schema = endpoint.model.model_json_schema()
        out.append(f"## `POST {endpoint.path}`\n")
        rows = list(_rows(schema))
        rows += [f"| `{name}` | | refused: {why} |" for name, why in sorted(endpoint.refused.items())]
        out.append(_table(rows))
        for name, inner in schema.get("$defs", {}).items():
            title = f"{name} of {endpoint.path}" if endpoint.path.startswith("/v1/messages") else name
            if title not in shown and endpoint.path != "/v1/messages/count_tokens":
                shown.add(title)
                out.append(f"### `{name}`\n\n{inner.get('description', '')}\n\n{_table(list(_rows(inner)))}")
    return "\n".join(out)


def _table(rows: list[str]) -> str:
    return "\n".join(["| field | values | here |", "|---|---|---|", *rows]) + "\n"


def _rows(schema: dict[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        values = _values(field)
        if name in required:
            values = f"{values}; required"
        elif field.get("default") is not None:
            values = f"{values}; default {_literal(field['default'])}"
        here = field.get("here") or ("honoured" if not _one_value(field) else f"only {_values(field)}")
        if "description" in field:
            here = f"{here}; {field['description']}"
        yield f"| `{name}` | {values} | {here} |"


def _one_value(field: dict[str, Any]) -> bool:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    return len(options) == 1 and "const" in options[0]


def _values(field: dict[str, Any]) -> str:
    if "anyOf" in field or "oneOf" in field:
        options = field.get("anyOf") or field["oneOf"]
        return " or ".join(dict.fromkeys(_values(o) for o in options if o.get("type") != "null"))
    if "$ref" in field:
        return f"`{field['$ref'].rsplit('/', 1)[1]}`"
    if "const" in field or "enum" in field:
        return ", ".join(_literal(value) for value in field.get("enum", [field.get("const")]))
    kind: str = field.get("type", "any")
    if kind == "array":
        return f"list of {_values(field.get('items', {}))}{_bounds(field, 'Items', ' items')}"
    return f"{kind}{_bounds(field, 'Length', ' characters')}{_range(field)}"


def _literal(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _bounds(field: dict[str, Any], what: str, unit: str) -> str:
    low, high = field.get(f"min{what}"), field.get(f"max{what}")
    parts = [f"at least {low}" if low else "", f"at most {high}" if high is not None else ""]
    said = " and ".join(part for part in parts if part)
    return f", {said}{unit}" if said else ""


def _range(field: dict[str, Any]) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    said = [f"{sign} {json.dumps(field[name])}" for name, sign in signs if name in field]
    return f", {' and '.join(said)}" if said else ""


if __name__ == "__main__":
    print(table(), end="")
