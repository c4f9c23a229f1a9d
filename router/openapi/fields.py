"""Every field of every API as Markdown: `python -m router.openapi.fields > docs/API.md`."""

import json
from collections.abc import Iterator
from typing import Any

from router.api.responses.rows import LEASE_S
from router.endpoints import ENDPOINTS

# The models of these paths share names with models of other APIs.
_OWN_NAMES = ("/v1/messages", "/v1/responses")

_INTRO = """\
# The APIs, field by field

`python -m router.openapi.fields` writes this page from the code, and a test compares them. In the tables,
**honoured** means that the field does what its API says, within the values given. **only …** means that every other
value is refused. **meaningless** means that the field is accepted and changes nothing. **refused** means that the
request gets a 400 which names the field; fields that are not listed are refused too. A field that is `null` counts as
not sent, except inside data that belongs to the client: schemas, arguments and metadata.

## Text and markers

Everything that a client sends in a conversation is text: contents, names, descriptions, schemas, arguments and
results. Only the checkpoint's chat template writes the markers that structure a prompt. `<|role_end|>` in a message,
or `<tool_call>` in a tool's description, is encoded as the characters it consists of, like any other text. The prompt
of `/v1/completions` and the `prompt` of `/tokenize` are raw: a marker in them becomes its token. Whoever puts text
from strangers into such a prompt has to remove markers first.

## How the model reads its own answers

When an assistant's turn comes back unchanged (text, call names and call arguments byte by byte; in `/v1/messages`
equal values), the model reads the same tokens that it generated, instead of tokens that the template renders again. A
turn gets the template's tokens if it was changed, if it was answered for another tenant or by another router, if it
had reasoning (templates leave that out of earlier turns), if a stop string or the limit to a single call ended it, or
if it was answered too long ago: each router remembers the last 64 MiB of token ids.

## Tool calls

The parser that `router.tool_parser` names (`qwen25`, also known as `hermes`) separates calls from text. `<tool_call>`
and `</tool_call>` are never shown, white space around calls is dropped, and all other text is kept. In
`/v1/chat/completions` a call's name is sent when its arguments begin, and the arguments are sent as they form.
Mistakes in a call's JSON are repaired where only one meaning is possible: `parameters` for `arguments`, missing or
null arguments, arguments as a string of JSON, keys in any order, raw line breaks in strings, and one brace too few or
too many. Any other call that breaks before its arguments begin becomes text; a call that breaks within its arguments
keeps what was written as its arguments. In `/v1/messages` a call is sent when it is complete, because clients of that
API expect `input` to be valid. There, a call whose arguments are no JSON object becomes text, and a call that the
token limit cuts off becomes a `tool_use` with as much of its input as there is, with the `stop_reason` `max_tokens`.

Stop strings count only in the content: not in reasoning, and not in a call that has begun. The log-probabilities of
`/v1/chat/completions` and `/v1/responses` are those of the content's tokens; a token that a stop string cuts is
listed with the bytes that are shown. `/v1/completions` lists every token.

`<think>…</think>` at the beginning of an answer becomes the `reasoning_content` of a chat message, or a `thinking`
block of `/v1/messages` if `thinking` asks for it; otherwise it is left out.

`/v1/responses` also takes tools that are no functions. Tools of a `namespace` are functions to the model, and their
calls come back with their namespace. A `custom` tool is a function with one text argument; the model is told its
grammar, but the answer is not held to it. A `local_shell` is a function whose calls come back as `local_shell_call`.
Tools that a server would have to run (`web_search`, `file_search`, `code_interpreter`, `image_generation`, `mcp`,
`computer_use_preview`) are left out, and a `warning` header names them; a request whose answer must call one of them
is a 400.

Documents and search results in a tool's result become text. An image or a file becomes a note which tells the model
that it was left out, or a 400 if `router.attachments` is `refuse`.

## Constrained answers

A grammar constrains the whole answer to `response_format`, `output_config.format`, `text.format` or
`structured_outputs`; to calls alone if `tool_choice` is `required`, `any` or names a tool; and to valid arguments
once a call of a `strict` tool begins, while all other text stays free. A model that was asked to reason may do so
before its constrained answer. If a request has both tools and a format, the answer is a call or text in that format.
JSON is written on one line. A schema keyword that can't be enforced is a 400 with its path in the schema if `strict`
is true, and always in `structured_outputs`; without `strict` the keyword is ignored, also in the tools of a call that
must be made. An answer that the token limit ends may be incomplete. `STRUCTURED.md` has more.

## Stored responses

A response of `/v1/responses` is stored together with its input unless `store` is false. The same tenant, and nobody
else, can fetch it (`GET /v1/responses/ID`), delete it (`DELETE`), page through its input and the conversation before
that (`GET …/input_items`), and continue it (`previous_response_id`). Each tenant has room for `router.max_responses`
responses and `router.max_responses_bytes` bytes; the least recently used response is removed first, but never one
that still runs. A response that is deleted or removed disappears at once; its items are kept as long as a later
response of the same conversation needs them. A response that could not be stored says `"store": false`.

All routers of one host share the stored responses, in `router.data_dir`, or without that setting in a temporary
folder that is deleted with the cluster. Routers of several hosts share them only with `router.database_url`. Without
it, each client has to reach the same host every time; otherwise its `previous_response_id` is a 400 with the code
`previous_response_not_found`.

With `background` the answer is returned at once with the status `in_progress`, and the work continues without the
client. Any router of the host can return it, stream it (`GET …?stream=true&starting_after=N`, if it was created with
`stream`) or cancel it (`POST …/cancel`). When a router closes, the responses that it runs fail; when a router dies,
another one that shares the stored responses goes on with them {lease:g} s later. A cancelled stream ends with
`response.incomplete` and the status `cancelled`. When a client disconnects from a response that does not run in the
background, the work ends and nothing is stored, unless the request had an `Idempotency-Key` header: such a response
goes on as one in the background does, and the same request with the same key shows it again, a stream from its
beginning.

Reasoning is a separate item before the answer, with its text as `reasoning_text` and without a summary. What the
model wrote before, between and after calls becomes items in that order. Reasoning tokens are counted by encoding
their text again.

## Batches

`POST /v1/files` uploads a file of JSON lines (`GET`, `GET …/content` and `DELETE /v1/files/ID` read and delete it,
`GET /v1/files` lists files in pages). `POST /v1/batches` answers it line by line; lines are requests to
`/v1/chat/completions`, `/v1/completions` or `/v1/responses`. `GET /v1/batches/ID` tells the progress, `POST …/cancel`
ends the batch, and `GET /v1/batches` lists the tenant's batches. A file with lines that are no requests (no JSON,
another endpoint, a `custom_id` that occurs twice) makes the whole batch fail, with the first 100 such lines in
`errors`. A request that is refused appears in the error file with the status and the body that a client would have
got. A line at which a worker failed is tried five times. The lines of the output and error files are in the order of
the input.

A batch's lines run when no live request needs the workers. A line starts only while an eighth of the slots and pages
of both pools is free and no live request waits. Lines do not count against `router.max_queue` or a key's limits, and
every live request takes precedence: if there is no room, it takes a line's place at once. Waiting does not make lines
more urgent. Lines that are not answered within `completion_window` are listed as expired.

`POST /v1/messages/batches` takes many messages at once and uses the same store and runner: its requests are stored as
a file of the tenant and run like other lines. `GET …/batches/ID/results` returns a line for each request with its
message, its error, `expired` or `canceled`.

Records and contents are stored in `router.data_dir`, which `ling serve` sets to the user's state directory
(`$XDG_STATE_HOME/ling-cluster`, usually `~/.local/state/ling-cluster`); without that setting both APIs refuse. They
outlive the cluster: routers with the same `served_name` continue a batch where it was, and no line is in its output
twice. The routers of one host share them. Routers of several hosts share them only with `router.database_url` and a
common volume for `router.data_dir`; without both, run batches on one host alone. Files are kept for 30 days or as
`expires_after` says, batches for 90 days. Only the tenant that owns a file or batch can use it.

Limits: `router.max_file_bytes` for one upload, `router.max_stored_bytes` for all files of a tenant,
`router.max_batch_lines` for a batch, `router.max_body_bytes` for a line, `router.batch_concurrency` for the lines
that one router runs at once, and 1000 unfinished batches for a tenant.

## Keys and limits

If there is a file of keys (`router.api_keys`, with lines made by `python -m router.access.keys TENANT`; it is read
again when it changes), all paths below need a key, as `Authorization: Bearer KEY` or `x-api-key: KEY`. Without the
file no key is needed. The file also sets limits:

```
acme sha256:HEX                                      a key
acme sha256:HEX requests=60                          a key with limits of its own, apart from its tenant's
acme limits requests=600 tokens=200000 concurrent=8  limits for all other keys of the tenant together
* limits tokens=50000                                limits for each tenant without such a line
```

`requests` and `tokens` are limits per minute that refill evenly; `concurrent` is the number of requests that may run
at once. Each request to a path that needs a key counts. A generating request first reserves its prompt and
`max_tokens` (1024 if it does not bound its answer) and in the end pays for the tokens it used, which may leave the
key in debt. A request beyond a limit is a 429 with `Retry-After`; a request that needs more tokens than a whole
minute grants is a 400. Every answer states what is left in `x-ratelimit-limit-requests`, `-remaining-requests`,
`-reset-requests` and the same for `tokens`; below `/v1/messages` in `anthropic-ratelimit-requests-limit` and so on.
If there are several routers (`router.replicas`), each grants an equal share, rounded up, and states only its own
share: together they grant no more per minute than the limit, but for the rounding. A client that keeps one connection
gets one share.

## All paths

Each answer has the header `x-request-id`, with the client's own id (1 to 128 printable ASCII characters, no comma) or
a new one; below `/v1/messages` the id is also in `request-id` and in the body of an error. The router's log contains
it. A request head beyond 64 KiB is a 431, a body beyond `router.max_body_bytes` a 413, and JSON that is nested deeper
than 200 levels a 400. A body that does not arrive within `router.body_timeout_s` is a 408, and an answer that is not
complete within `router.request_timeout_s` a 504. If a request's worker ends, the request continues at another worker;
if there is none, it waits `router.first_token_timeout_s` for one. A request during which several workers in a row end
is a 422 with the code `request_quarantined`, or that error in its stream. `HEAD` is answered wherever `GET` is. The
query of a generating request (`?beta=true`) and headers of other vendors (`anthropic-beta`) are ignored; but `GET
/v1/models` and `GET /v1/models/NAME` with an `anthropic-version` header answer in that API's format. `GET
/openapi.json` describes all paths, their requests and their answers for programs. Its schema for `text/event-stream`
describes one event, whose `data` is JSON as `contentSchema` describes it.

Errors have the format of the API that was called: `{"error": {"message", "type", "param", "code"}}`, and below
`/v1/messages` `{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}`. An error
within a stream is its last event.
""".replace("{lease:g}", f"{LEASE_S:g}")


def table() -> str:
    """The whole document."""
    out = [_INTRO]
    shown: set[str] = set()
    for endpoint in ENDPOINTS:
        model = endpoint.body or endpoint.form
        if model is None:
            continue
        schema = model.model_json_schema()
        out.append(f"## `POST {endpoint.path}`\n")
        rows = list(_rows(schema))
        rows += [f"| `{name}` | | refused: {why} |" for name, why in sorted(endpoint.refused.items())]
        out.append(_table(rows))
        for name, inner in schema.get("$defs", {}).items():
            title = f"{name} of {endpoint.path}" if endpoint.path.startswith(_OWN_NAMES) else name
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
