"""The generating endpoints as plain ASGI applications, so that a chunk costs one `send`."""

import asyncio
import logging
import secrets
import time
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from msgspec import structs
from starlette.types import Receive, Scope, Send

from router.api.answering import Answering, check_model
from router.api.answers.generated import Head
from router.api.prompts import make_choices
from router.api.request import Request
from router.api.session_turn import begin_turn, session_of
from router.config import RouterConfig
from router.errors import ApiError
from router.http.body import ClientGone, read_body
from router.http.caller import Caller, caller_of
from router.http.deadline import deadline_of
from router.http.dialect import Dialect
from router.http.keyed import keyed_of
from router.http.send import Headers, send_json
from router.relay.choice import Choice, Delta
from router.relay.gateway import Gateway
from router.relay.job import Job
from router.relay.keyed import Keyed
from router.relay.prefixes import scope_of
from router.relay.sessions import Sessions
from router.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
# Encoding this many log-probabilities takes milliseconds. A thread does it, so that other streams need not wait.
HEAVY = 256


class Asked(Protocol):
    """A validated request in the form of its API."""

    @property
    def model(self) -> str:
        """The model that the request names."""

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream."""


R = TypeVar("R", bound=Asked)


class AnswerSerializer(Protocol):
    """Writes one request's answer as JSON."""

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The events for what a choice gained. over: it gains nothing more. b"" if there is nothing to show yet."""

    async def settle(self, error: ApiError | None) -> None:
        """Do what must be done before the client sees the end. error: why a stream that had begun failed."""

    def last(self) -> bytes:
        """The last events of a stream."""

    def failed(self, error: ApiError, request_id: str) -> bytes:
        """The last events of a stream that failed."""

    def whole(self) -> bytes:
        """The body of an answer without a stream."""


class Api(Protocol[R]):
    """One API's part of generating: how to read, lower and serialize."""

    name: str
    id_prefix: str
    dialect: Dialect

    def read(self, body: bytes) -> R:
        """Parse and validate a request's body."""

    def lower(self, asked: R) -> Request:
        """Lower a request to a neutral one; 400 if its fields contradict each other."""

    def serializer(
        self, head: Head, asked: R, request: Request, choices: list[Choice], tokenizer: Tokenizer
    ) -> AnswerSerializer:
        """Make the serializer of a request's answer."""


def begin(
    gateway: Gateway, api: Api[R], asked: R, request: Request, choices: list[Choice], keyed: Keyed | None = None
) -> AnswerSerializer:
    """Start the answer to choices that are about to be computed. Its id is new, as clients may use their own twice.

    keyed: if the request has a key, its answer has the same id at every router.
    """
    head: Head = {
        "id": api.id_prefix + (keyed.name if keyed is not None else secrets.token_bytes(16)).hex(),
        "created": int(time.time()),
        "model": gateway.config.served_model_name,
    }
    return api.serializer(head, asked, request, choices, gateway.tokenizer)


class Generate(Answering, Generic[R]):
    """The endpoint of an API that only generates: chat, completions or messages."""

    def __init__(self, gateway: Gateway, api: Api[R], sessions: Sessions) -> None:
        super().__init__(gateway, api.name, api.dialect)
        self._api = api
        self._sessions = sessions

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        gateway, api = self._gateway, self._api
        body = await read_body(scope, receive, gateway.config)
        if gateway.config.log_prompts:
            caller_of(scope).asked = body.decode(errors="replace")
        asked = await gateway.apart(len(body), api.read, body)
        check_model(asked.model, gateway.config)
        request = await gateway.apart(len(body), api.lower, asked)
        keyed = keyed_of(scope, body, caller_of(scope).tenant)
        if keyed is not None and request.sampling.seed is None:
            request = replace(request, sampling=structs.replace(request.sampling, seed=keyed.seed))
        session = session_of(scope, request)
        with gateway.admitted(request.choices) as permit:
            choices = await make_choices(gateway, request, caller_of(scope).tenant)
            serializer = begin(gateway, api, asked, request, choices, keyed)
            caller = caller_of(scope)
            caller.choices = choices
            caller.priority = request.priority
            job = job_of(request, choices, caller, gateway.config, deadline_of(scope), keyed)
            await gateway.rejoin(job)
            turn = await begin_turn(self._sessions, session, caller, job)
            with self._sessions.held(turn), gateway.flying(job, permit):
                headers += worker_headers(job, gateway.config)
                watch = asyncio.create_task(watch_client(receive, job))
                try:
                    return await (stream_answer if request.stream else whole_answer)(send, job, serializer, headers)
                finally:
                    watch.cancel()


def job_of(
    request: Request,
    choices: list[Choice],
    caller: Caller,
    config: RouterConfig,
    deadline_s: float | None,
    keyed: Keyed | None = None,
) -> Job:
    """Make the job of a live request."""
    if request.stream and keyed is not None:
        for choice, had in zip(choices, keyed.had, strict=False):
            choice.had, choice.told_end = had.tokens, had.finished
    return Job(
        choices,
        stream=request.stream,
        priority=request.priority,
        account=caller.account,
        tenant=caller.tenant,
        length_field=request.names.max_tokens,
        prefix_scope=scope_of(caller.tenant, request.cache_salt, config.cache_share_all),
        deadline_s=deadline_s,
        keyed=keyed,
        request_id=caller.request_id,
    )


def worker_headers(job: Job, config: RouterConfig) -> Headers:
    """Headers that name the workers, if they are known by now and `name_workers` is on."""
    if not config.name_workers:
        return []
    found = [stream.workers for stream in job.streams if stream.workers is not None]
    names = (b"x-ling-prefill-worker", b"x-ling-decode-worker")
    return [(name, ",".join(dict.fromkeys(pair[at] for pair in found)).encode()) for at, name in enumerate(names)]


async def watch_client(receive: Receive, job: Job) -> None:
    """Tell the job when its client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.leave()


async def whole_answer(send: Send, job: Job, serializer: AnswerSerializer, headers: Headers) -> str:
    """Send the answer when it is complete. Returns the HTTP status; ApiError if the job failed."""
    while not job.over:
        await job.wait()
    if job.gone:
        raise ClientGone
    if job.error is not None:
        raise job.error
    await job.settle()
    await serializer.settle(None)
    weight = sum(c.generated if c.keep_logprobs else 0 for c in job.choices)
    weight += sum(len(c.prompt_logprobs) for c in job.choices)
    await send_json(
        send, 200, serializer.whole() if weight < HEAVY else await asyncio.to_thread(serializer.whole), headers
    )
    return "200"


async def chunks(job: Job, serializer: AnswerSerializer) -> bytes:
    """The events for everything that the job gained since the last call."""
    parts = []
    for choice in job.ready():
        if choice.skipped is not None:  # the client has this already, but the serializer must know it
            serializer.chunk(choice, choice.skipped, False)
            choice.skipped = None
        over = choice.served_by is not None
        if choice.had and not over:
            continue
        delta, told = choice.take(), choice.told_end
        weight = len(delta.logprobs) + (0 if choice.started else len(choice.prompt_logprobs))
        if weight < HEAVY:
            part = serializer.chunk(choice, delta, over)
        else:
            part = await asyncio.to_thread(serializer.chunk, choice, delta, over)
        choice.told_end = told or over
        if not told and part:
            parts.append(_with_id(part, job) if job.keyed is not None and job.keyed.tells_ids else part)
    return b"".join(parts)


def _with_id(events: bytes, job: Job) -> bytes:
    """Add an id to a choice's last event, which says how much of each choice the client has if it comes back."""
    at = events.rfind(b"\n\n", 0, -2) + 2 if events.count(b"\n\n") > 1 else 0
    had = ".".join(f"{c.taken}{'f' if c.told_end else ''}" for c in job.choices)
    return events[:at] + b"id: " + had.encode() + b"\n" + events[at:]


async def stream_answer(send: Send, job: Job, serializer: AnswerSerializer, headers: Headers) -> str:
    """Send the answer as it forms.

    Returns the HTTP status, or "error" if the stream failed; ApiError if it never began.
    """
    # The head is sent with the first output, so that a failure before it still gets an HTTP status.
    begun = False
    while True:
        await job.wait()
        if job.gone:
            raise ClientGone
        error = job.error
        if error is not None and not begun:
            raise error
        end = job.over
        body = b"" if error is not None else await chunks(job, serializer)
        if end:
            await job.settle()
            await serializer.settle(error)
            body += serializer.last() if error is None else serializer.failed(error, headers[0][1].decode())
        elif not body:
            continue
        if not begun:
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": stream_headers(headers)})
        await send({"type": "http.response.body", "body": body, "more_body": not end})
        if end:
            return "200" if error is None else "error"


def stream_headers(headers: Headers) -> Headers:
    """The headers of a stream."""
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        *headers,
    ]
