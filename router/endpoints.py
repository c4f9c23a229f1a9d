"""Every endpoint, once: routes, keys, /openapi.json and docs/API.md are derived from this table."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from router.api.answers.anthropic import AnthropicMessage, AnthropicModel, AnthropicModelList, MessageEvent, TokenCount
from router.api.answers.batches import DeletedMessageBatch, MessageBatch, MessageBatchPage
from router.api.answers.generated import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from router.api.answers.items import KeptItem
from router.api.answers.records import BatchRecord, Deleted, FileRecord, Page
from router.api.answers.server import (
    ClusterStatus,
    Detokenized,
    DrainedWorker,
    Health,
    Model,
    ModelList,
    Ready,
    Root,
    Tokenized,
)
from router.api.answers.sessions import ReplayedTurn, SessionList, SessionRecord
from router.api.anthropic.counting import count_tokens
from router.api.anthropic.messages import Messages
from router.api.anthropic.schema import CountRequest, MessagesRequest
from router.api.chat import Chat
from router.api.chat_schema import ChatRequest
from router.api.completion_schema import CompletionRequest
from router.api.completions import Completions
from router.api.counting import DetokenizeRequest, TokenizeRequest, detokenize, tokenize
from router.api.generate import Api, Generate
from router.api.info import Info
from router.api.json_endpoint import JsonEndpoint
from router.api.page import LivePage, Since
from router.api.responses import answers as responses
from router.api.responses.create import Create
from router.api.responses.lines import ResponseLines
from router.api.responses.schema import ResponseRequest
from router.api.responses.stored import ItemsQuery, ResponseQuery, StoredResponses
from router.api.sessions import ForkRequest, SessionsApi, SessionsQuery
from router.api.snapshots import ReplayRequest, SnapshotsApi
from router.api.workers import WorkersApi
from router.batch.batches import Batches, BatchesQuery, BatchRequest
from router.batch.files import Files, FilesQuery, FileUpload
from router.batch.message_batches import MessageBatches, MessageBatchesQuery, MessageBatchRequest
from router.errors import OpenAIError, invalid
from router.history import Series
from router.http.dialect import ANTHROPIC, OPENAI
from router.http.query import NoQuery
from router.relay.gateway import Gateway
from router.relay.sessions import Sessions

Handler = ASGIApp | Callable[[Request], Awaitable[Response]]
JSON, EVENTS, TEXT, HTML, BYTES, JSONL = (
    "application/json",
    "text/event-stream",
    "text/plain",
    "text/html",
    "application/octet-stream",
    "application/x-jsonl",
)
_TEXT_ALONE = "the model reads and writes text alone"
_REMOTE = "the server runs no tools and stores nothing of this kind"
_NO_CACHE = "prefixes of prompts are cached without options"
_UNMODERATED = "the server does not moderate"
_SHAPED = "in Anthropic's format if there is an `anthropic-version` header"


@dataclass(frozen=True, slots=True)
class Parts:
    """The objects whose methods answer requests; each router has one set.

    files, batches: None without a data folder.
    """

    gateway: Gateway
    info: Info
    page: LivePage
    openapi: Callable[[Request], Awaitable[Response]]
    create: Create
    stored: StoredResponses
    sessions: Sessions
    sessions_api: SessionsApi
    snapshots: SnapshotsApi
    workers: WorkersApi
    files: Files | None
    batches: Batches | None
    message_batches: MessageBatches | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    answer: the type of its JSON answer with status 200. event: the type of a streamed event's data. media: further
    media types of its answer. body, form, query: the models that validate its input. raw: its
    input is a file of bytes. line: the API that answers it as a
    line of a batch. keyed: whether it needs an API key if the server has a file of keys. refused: fields that its API
    has elsewhere, each with the reason why it is a 400 here.
    """

    method: str
    path: str
    summary: str
    handler: Callable[[Parts], Handler]
    answer: Any = None
    event: Any = None
    media: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    raw: bool = False
    query: type[BaseModel] = NoQuery
    line: Api[Any] | None = None
    keyed: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)


def _files(method: Callable[[Files, Request], Awaitable[Response]]) -> Callable[[Parts], Handler]:
    return lambda parts: partial(method, parts.files) if parts.files is not None else _off


def _batches(method: Callable[[Batches, Request], Awaitable[Response]]) -> Callable[[Parts], Handler]:
    return lambda parts: partial(method, parts.batches) if parts.batches is not None else _off


def _message_batches(method: Callable[[MessageBatches, Request], Awaitable[Response]]) -> Callable[[Parts], Handler]:
    return lambda parts: partial(method, parts.message_batches) if parts.message_batches is not None else _off


async def _off(request: Request) -> NoReturn:
    raise invalid(
        "files and batches are off: the server has no folder to store them; set router.data_dir",
        code="no_data_dir",
    )


_MESSAGES_REFUSED = {
    "billing_policy": "the server bills nothing",
    "compaction": "the server does not shorten conversations",
    "user_profile_id": _REMOTE,
    "workspace_id": _REMOTE,
}
_MESSAGE_BATCH = "/v1/messages/batches/{batch_id}"
_ONE_SESSION = "/v1/sessions/{session_id}"
_ONE_RESPONSE, _ONE_FILE, _ONE_BATCH = "/v1/responses/{response_id}", "/v1/files/{file_id}", "/v1/batches/{batch_id}"
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        "Answer a conversation",
        lambda parts: Generate(parts.gateway, Chat(), parts.sessions),
        ChatCompletion,
        ChatCompletionChunk | OpenAIError,
        body=ChatRequest,
        line=Chat(),
        refused={
            "audio": _TEXT_ALONE,
            "function_call": "replaced by `tool_choice`",
            "functions": "replaced by `tools`",
            "moderation": _UNMODERATED,
            "prediction": "the server takes no drafts from clients",
            "prompt_cache_options": _NO_CACHE,
            "web_search_options": _REMOTE,
        },
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        "Continue a text",
        lambda parts: Generate(parts.gateway, Completions(), parts.sessions),
        Completion,
        CompletionChunk | OpenAIError,
        body=CompletionRequest,
        line=Completions(),
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        "Answer a conversation, and keep the answer",
        lambda parts: parts.create,
        responses.Response,
        responses.ResponseEvent,
        body=ResponseRequest,
        line=ResponseLines(),
        refused={
            "access_programs": "the server has none",
            "background_options": "a background response always starts at once",
            "conversation": "use `previous_response_id` to continue a conversation",
            "image": _TEXT_ALONE,
            "moderation": _UNMODERATED,
            "prompt": "the server keeps no prompts",
            "prompt_cache_options": _NO_CACHE,
        },
    ),
    Endpoint(
        "POST",
        "/v1/messages",
        "Answer a conversation",
        lambda parts: Generate(parts.gateway, Messages(), parts.sessions),
        AnthropicMessage,
        MessageEvent,
        body=MessagesRequest,
        line=Messages(),
        refused={
            **_MESSAGES_REFUSED,
            "container": _REMOTE,
            "diagnostics": "answers carry no diagnostics",
            "fallback_credit_token": "the server bills nothing",
            "fallbacks": "the server has one model",
            "inference_geo": "the server runs in one place",
            "thread": "send the whole conversation; the error's code makes the SDK do so",
        },
    ),
    Endpoint(
        "POST",
        "/v1/messages/count_tokens",
        "Count the tokens of a prompt",
        lambda parts: JsonEndpoint(parts.gateway, "count_tokens", ANTHROPIC, CountRequest, count_tokens),
        TokenCount,
        body=CountRequest,
        refused=_MESSAGES_REFUSED,
    ),
    Endpoint(
        "POST",
        "/v1/messages/batches",
        "Answer many messages",
        _message_batches(MessageBatches.create),
        MessageBatch,
        body=MessageBatchRequest,
    ),
    Endpoint(
        "GET",
        "/v1/messages/batches",
        "List message batches",
        _message_batches(MessageBatches.page),
        MessageBatchPage,
        query=MessageBatchesQuery,
    ),
    Endpoint(
        "GET",
        _MESSAGE_BATCH,
        "The progress of a message batch",
        _message_batches(MessageBatches.retrieve),
        MessageBatch,
    ),
    Endpoint(
        "DELETE",
        _MESSAGE_BATCH,
        "Delete a message batch",
        _message_batches(MessageBatches.delete),
        DeletedMessageBatch,
    ),
    Endpoint(
        "POST",
        f"{_MESSAGE_BATCH}/cancel",
        "Cancel a message batch: no further request of it starts",
        _message_batches(MessageBatches.cancel),
        MessageBatch,
    ),
    Endpoint(
        "GET",
        f"{_MESSAGE_BATCH}/results",
        "The results of a message batch, one JSON object per line",
        _message_batches(MessageBatches.results),
        media=(JSONL,),
    ),
    Endpoint(
        "POST",
        "/tokenize",
        "Encode a text or a conversation as token ids",
        lambda parts: JsonEndpoint(parts.gateway, "tokenize", OPENAI, TokenizeRequest, tokenize),
        Tokenized,
        body=TokenizeRequest,
    ),
    Endpoint(
        "POST",
        "/detokenize",
        "Decode token ids to text",
        lambda parts: JsonEndpoint(parts.gateway, "detokenize", OPENAI, DetokenizeRequest, detokenize),
        Detokenized,
        body=DetokenizeRequest,
    ),
    Endpoint(
        "GET",
        "/tokenizer_info",
        "The checkpoint's tokenizer_config.json with its chat template",
        lambda parts: parts.info.tokenizer_info,
        dict[str, Any],
    ),
    Endpoint(
        "GET",
        _ONE_RESPONSE,
        "A stored response, or its events",
        lambda parts: parts.stored.retrieve,
        responses.Response,
        responses.ResponseEvent,
        query=ResponseQuery,
    ),
    Endpoint("DELETE", _ONE_RESPONSE, "Delete a response", lambda parts: parts.stored.delete, Deleted),
    Endpoint(
        "POST",
        f"{_ONE_RESPONSE}/cancel",
        "End a response that runs in the background",
        lambda parts: parts.stored.cancel,
        responses.Response,
    ),
    Endpoint(
        "GET",
        f"{_ONE_RESPONSE}/input_items",
        "The input of a response",
        lambda parts: parts.stored.input_items,
        Page[KeptItem],
        query=ItemsQuery,
    ),
    Endpoint(
        "GET",
        "/v1/sessions",
        "List sessions, newest first",
        lambda parts: parts.sessions_api.page,
        Page[SessionRecord],
        query=SessionsQuery,
    ),
    Endpoint("GET", _ONE_SESSION, "A session's record", lambda parts: parts.sessions_api.retrieve, SessionRecord),
    Endpoint("DELETE", _ONE_SESSION, "Delete a session", lambda parts: parts.sessions_api.delete, Deleted),
    Endpoint(
        "GET",
        f"{_ONE_SESSION}/snapshot",
        "A session as a safetensors file: its tokens, how its last answer was sampled, and its state where it is kept",
        lambda parts: parts.snapshots.save,
        media=(BYTES,),
    ),
    Endpoint(
        "POST",
        f"{_ONE_SESSION}/snapshot",
        "Begin a session where such a file stands",
        lambda parts: parts.snapshots.load,
        SessionRecord,
        raw=True,
    ),
    Endpoint(
        "POST",
        f"{_ONE_SESSION}/replay",
        "Compute a session's last answer again, with its seed, and compare",
        lambda parts: parts.snapshots.replay,
        ReplayedTurn,
        body=ReplayRequest,
    ),
    Endpoint(
        "GET",
        "/v1/requests/{request_id}/snapshot",
        "A request that failed at the workers, as such a file",
        lambda parts: parts.snapshots.save_request,
        media=(BYTES,),
    ),
    Endpoint(
        "POST",
        f"{_ONE_SESSION}/park",
        "Move a session's snapshot from the device to host memory or disk",
        lambda parts: parts.sessions_api.park,
        SessionRecord,
    ),
    Endpoint(
        "POST",
        f"{_ONE_SESSION}/resume",
        "Bring a session's snapshot to a device before the next request needs it",
        lambda parts: parts.sessions_api.resume,
        SessionRecord,
    ),
    Endpoint(
        "POST",
        f"{_ONE_SESSION}/fork",
        "Create sessions that continue from the end of this one",
        lambda parts: parts.sessions_api.fork,
        SessionList,
        body=ForkRequest,
    ),
    Endpoint(
        "POST",
        "/v1/workers/{worker_id}/drain",
        "End a worker; its answers continue at other workers",
        lambda parts: parts.workers.drain,
        DrainedWorker,
    ),
    Endpoint("POST", "/v1/files", "Upload a file of requests", _files(Files.create), FileRecord, form=FileUpload),
    Endpoint("GET", "/v1/files", "List files", _files(Files.page), Page[FileRecord], query=FilesQuery),
    Endpoint("GET", _ONE_FILE, "A file's record", _files(Files.retrieve), FileRecord),
    Endpoint("DELETE", _ONE_FILE, "Delete a file", _files(Files.delete), Deleted),
    Endpoint("GET", f"{_ONE_FILE}/content", "A file's bytes", _files(Files.content), media=(BYTES,)),
    Endpoint(
        "POST", "/v1/batches", "Answer a file of requests", _batches(Batches.create), BatchRecord, body=BatchRequest
    ),
    Endpoint(
        "GET",
        "/v1/batches",
        "List batches, newest first",
        _batches(Batches.page),
        Page[BatchRecord],
        query=BatchesQuery,
    ),
    Endpoint("GET", _ONE_BATCH, "The progress of a batch", _batches(Batches.retrieve), BatchRecord),
    Endpoint(
        "POST",
        f"{_ONE_BATCH}/cancel",
        "Cancel a batch: no further line of it starts",
        _batches(Batches.cancel),
        BatchRecord,
    ),
    Endpoint(
        "GET",
        "/v1/models",
        f"The served model, as a list; {_SHAPED}",
        lambda parts: parts.info.models,
        ModelList | AnthropicModelList,
    ),
    Endpoint(
        "GET",
        "/v1/models/{name:path}",
        f"The served model by its name; {_SHAPED}",
        lambda parts: parts.info.model,
        Model | AnthropicModel,
    ),
    Endpoint(
        "GET",
        "/",
        "The list of paths; for browsers, a page of live figures",
        lambda parts: parts.page.root,
        Root,
        media=(HTML,),
        keyed=False,
    ),
    Endpoint(
        "GET",
        "/live",
        "The figures of /metrics over the last five minutes",
        lambda parts: parts.page.live,
        Series,
        query=Since,
        keyed=False,
    ),
    Endpoint("GET", "/health", "Whether the process is alive", lambda parts: parts.info.health, Health, keyed=False),
    Endpoint(
        "GET", "/ready", "Whether a request could be served now", lambda parts: parts.info.ready, Ready, keyed=False
    ),
    Endpoint(
        "GET",
        "/status",
        "Pools, workers, ranks and their figures",
        lambda parts: parts.info.status,
        ClusterStatus,
        keyed=False,
    ),
    Endpoint("GET", "/metrics", "Figures for Prometheus", lambda parts: parts.info.metrics, media=(TEXT,), keyed=False),
    Endpoint("GET", "/openapi.json", "This document", lambda parts: parts.openapi, dict[str, Any], keyed=False),
)
LINES: Mapping[str, Api[Any]] = {e.path: e.line for e in ENDPOINTS if e.line is not None}
# The paths that `GET /` lists: all except those with an id in them.
LISTED = tuple(dict.fromkeys(e.path for e in ENDPOINTS if "{" not in e.path and e.path != "/"))


def _top(path: str) -> str:
    return path.lstrip("/").partition("/")[0]


_KEYED = frozenset(_top(e.path) for e in ENDPOINTS if e.keyed)


def asks_for_key(path: str) -> bool:
    """Whether a path needs an API key. Every path below the first segment of a keyed endpoint does, known or not."""
    return _top(path) in _KEYED
