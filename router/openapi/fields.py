"""Every field of every API as Markdown: `python -m router.openapi.fields > docs/API.md`."""

import json
from collections.abc import Iterator
from typing import Any

from router.api.responses.rows import LEASE_S
from router.endpoints import ENDPOINTS

# Their models have names of other APIs' models.
_OWN_NAMES = ("/v1/messages", "/v1/responses")

_INTRO = """\
# The APIs, field by field

Made by `python -m router.openapi.fields`; a test holds it to the code. **honoured**: it does what its API says, within
the values given. **only …**: other values are refused. **meaningless**: accepted, and it changes nothing here.
**refused**: a 400 that names the field; so is every field that is not listed. A field with `null` counts as not sent,
but in what is the client's own: schemas, arguments, metadata.

## What is text and what is structure

What a client sends in a conversation is text: contents, names, descriptions, schemas, arguments, results. Only the
checkpoint's chat template writes the markers that structure it. `<|role_end|>` in a message, or `<tool_call>` in a
tool's description, is read as the characters it is made of, as any other text is. The prompt of `/v1/completions`, and
`prompt` of `/tokenize`, are raw: markers in them are their tokens, so whoever fills in such a prompt from text of
strangers must see to it.

## What the model reads of its own answers

An assistant's turn that comes back as it was answered (text, and calls' names and arguments, byte by byte; in
`/v1/messages` equal values) is read as the very tokens the model generated, not as the template would write them anew.
A turn that was changed gets the template's tokens. So does one of another tenant, one that had reasoning (templates
leave that out of earlier turns), one that a stop string ended or the limit to a single call, and one that another
router answered or that was answered long ago: each router remembers the last 64 MiB of token ids.

## What tools come to

Calls are told from text by the parser `router.tool_parser` names (`qwen25`, which `hermes` is another name of):
`<tool_call>` and `</tool_call>` never show, white space around calls is dropped, all other text stays. In
`/v1/chat/completions` a call's name leaves when its arguments begin, and these as they form. What a model gets wrong
in a call's JSON and can mean one thing only is read: `parameters` for `arguments`, none or null, arguments as a string
of JSON, keys in any order, line breaks as they are in strings, a brace too few or too many. Any other call that breaks
before its arguments begin is text; one that breaks within them keeps what was written as its arguments. In
`/v1/messages` a call leaves when it is whole: its clients take an `input` for sound. One whose arguments are no JSON
object is text there; one that the token limit cuts off is a `tool_use` with what there is of its input, and the
`stop_reason` is `max_tokens`.

Stop strings count in the content: not in reasoning, and not in a call that has begun. Log-probabilities of
`/v1/chat/completions` and `/v1/responses` are those of the content's tokens; a token that a stop string cuts comes
with the bytes that are shown. `/v1/completions` lists every token.

`<think>…</think>` at the beginning of an answer is `reasoning_content` of a chat message, and a `thinking` block of
`/v1/messages` where `thinking` asks for it; else it is left out.

`/v1/responses` takes tools of other kinds than functions. Those of a `namespace` are functions to the model and come
back with their namespace; a `custom` tool is a function of one text, its grammar told to the model and not enforced; a
`local_shell` is a function whose calls come back as `local_shell_call`. Tools that a server would run (`web_search`,
`file_search`, `code_interpreter`, `image_generation`, `mcp`, `computer_use_preview`) are left out, which the header
`warning` names; an answer that must call one of them is a 400.

Of what a tool returns, documents and search results are text. An image or a file becomes a note to the model that it
was left out, or a 400 where `router.attachments` is `refuse`.

## What an answer is held to

A grammar keeps the answer to `response_format`, `output_config.format`, `text.format` or `structured_outputs`; to
calls alone where `tool_choice` is `required`, `any` or names a tool; and to valid arguments once a call of a `strict`
tool begins, all other text staying free. What was asked to reason may do so before. Where tools are offered beside a
format, the answer is either. JSON comes on one line. A schema's keyword that can't be enforced is a 400 with the path
in the schema where `strict` is true (and in `structured_outputs` always), and is passed over where it is not, such as
in the tools of a call that must be made. What ends by the token limit may be incomplete. `STRUCTURED.md` says more.

## What is kept of responses

A response to `/v1/responses` is kept unless `store` is false, and with it what it was asked with: it can be fetched
(`GET /v1/responses/ID`), deleted (`DELETE`), paged through (`GET …/input_items`: all it was asked with, its
conversation before it too) and gone on with (`previous_response_id`), by the same tenant alone. A tenant keeps
`router.max_responses` of them in `router.max_responses_bytes`; the least recently used goes first, and never one that
still runs. What is deleted or goes is out of sight at once; its items stay as long as a later response of the same
conversation needs them. An answer that could not be kept says `"store": false`.

All routers of one host share what is kept, in `router.data_dir`, or without that in a temporary folder that goes with
the cluster. Routers of several hosts do not: there, see that a client comes to the same host again, else its
`previous_response_id` is a 400 with the code `previous_response_not_found`.

With `background` the answer comes at once, `in_progress`, and the work goes on without the client: fetch it, follow it
(`GET …?stream=true&starting_after=N`, if it was made with `stream`), or end it (`POST …/cancel`), at any router of the
host. A router that closes fails what it runs; what a router that died ran has failed {lease:g} s later. A stream that
is cancelled ends with `response.incomplete`, its status `cancelled`. Where a client leaves a response that is not in
the background, the work ends and nothing is kept.

Reasoning is an item of its own before the answer, with its text as `reasoning_text` and no summary. What the model
wrote before, between and after calls are items in that order. Reasoning tokens are counted anew from their text.

## What comes of batches

A file of JSON lines (`POST /v1/files`, then `GET`, `GET …/content` and `DELETE /v1/files/ID`, `GET /v1/files` in
pages) is answered line by line by `POST /v1/batches`, for `/v1/chat/completions`, `/v1/completions` and
`/v1/responses`. `GET /v1/batches/ID` tells how far it is, `POST …/cancel` ends it, `GET /v1/batches` lists a tenant's
own. An input whose lines are no requests (no JSON, another endpoint, a `custom_id` twice) fails as a whole, with the
first 100 of them in `errors`; a line that asks for what can't be is in the error file with the status and body a
client would have got. A line that a worker failed at is tried five times. Output and error lines stand in the order
of the input.

Lines run when nobody else needs the workers: they start while both pools have an eighth of their slots and pages to
spare and nothing waits, do not count against `router.max_queue` or a key's limits, and come after every live request,
which takes their places at once where none are free. Nothing makes a batch's lines more urgent with time: what is not
answered within `completion_window` is listed as expired.

`POST /v1/messages/batches` takes many messages at once, over the same store and runner: its requests are kept as a
file of the tenant's, run like other lines, and told by `GET …/batches/ID/results`, each with a message, an error, or
`expired` or `canceled`.

Records and contents lie in `router.data_dir`, which `ling serve` sets to the user's state directory
(`$XDG_STATE_HOME/ling-cluster`, usually `~/.local/state/ling-cluster`); without it both APIs refuse. They outlive the
cluster: a batch goes on where it stood, under routers of the same `served_name`, and no line is in its output twice.
The routers of one host share them; those of several hosts do not, so run them on one where batches are wanted. Files
are kept 30 days or as `expires_after` says, batches 90. A tenant's are its own.

Limits: `router.max_file_bytes` of one upload, `router.max_stored_bytes` of a tenant's files, `router.max_batch_lines`
of a batch, `router.max_body_bytes` of a line, `router.batch_concurrency` of lines at once in a router, and 1000
unfinished batches of a tenant.

## Who may ask, and how much

With a file of keys (`router.api_keys`, lines of `python -m router.access.keys TENANT`, read again when it changes) all
paths below need one, as `Authorization: Bearer KEY` or `x-api-key: KEY`; without the file no key is asked for. Its
lines set limits, too:

```
acme sha256:HEX                                      a key
acme sha256:HEX requests=60                          a key with limits of its own, apart from its tenant's
acme limits requests=600 tokens=200000 concurrent=8  of all the tenant's other keys together
* limits tokens=50000                                of each tenant without such a line
```

`requests` and `tokens` are a minute's and fill evenly, `concurrent` is how many requests may be under way. Each
request to a path that asks for a key counts. One that generates is charged for its prompt and `max_tokens` (1024
where it leaves the length open) and in the end for what there was, which may leave the key owing. Beyond a limit: a
429 with `Retry-After`; a request that one minute's tokens could never pay for is a 400. Every answer tells what is
left, in `x-ratelimit-limit-requests`, `-remaining-requests`, `-reset-requests` and the same of `tokens`, below
`/v1/messages` in `anthropic-ratelimit-requests-limit` and so on. Of several routers (`router.replicas`) each grants
an equal share by itself, rounded up, and tells of that alone: together they never grant more a minute than the limit
and a router's rounding, but a client that stays on one connection has one share.

## What holds for every path

Each answer carries `x-request-id`, the client's own (1 to 128 printable ASCII characters, no comma) or a new one, below
`/v1/messages` also as `request-id` and in the body of an error; the router's log has it. A head beyond 64 KiB is a
431, a body beyond `router.max_body_bytes` a 413, JSON that nests deeper than 200 levels a 400; what does not arrive
in `router.body_timeout_s` is a 408, what is not answered in `router.request_timeout_s` a 504. A request whose worker
ends goes on at another, and one that finds no worker waits `router.first_token_timeout_s` for one; what ends several
workers in a row is a 422 with the code `request_quarantined`, or that error in the stream. `HEAD` goes wherever `GET`
does. The query of a request that generates (`?beta=true`) and vendors' own headers (`anthropic-beta`) change
nothing, but that with `anthropic-version` `GET /v1/models` and `GET /v1/models/NAME` answer in that API's shape.
`GET /openapi.json` describes all paths to programs: what they take and, closed to any other field, what they answer.
The schema it gives for `text/event-stream` is that of one event, whose `data` is JSON by its `contentSchema`.

Errors come in the shape of the API called: `{"error": {"message", "type", "param", "code"}}`, and below
`/v1/messages` `{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}`. An error
amid a stream is its last event.""".replace("{lease:g}", f"{LEASE_S:g}")


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
