"""The generating endpoints, from HTTP request to answer, as plain ASGI: a chunk costs one `send`."""

import asyncio
import logging
import re
import time
import uuid
from typing import Generic, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from router.api.body import ClientGone, read_body
from router.api.dialect import Dialect
from router.api.prompts import Wanted, make_choices
from router.api.schema import GenerationRequest
from router.api.send import Headers, send_error, send_json
from router.choice import Choice, Delta, Prompt
from router.config import RouterConfig
from router.errors import ApiError, invalid
from router.gateway import Gateway, Limits
from router.job import Job
from router.tokens import Tokenizer

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# Writing out so many log-probabilities takes milliseconds: in a thread, lest other streams wait for it.
_HEAVY = 256
R = TypeVar("R", bound=GenerationRequest)


class Answer(Protocol):
    """One request's answer as JSON."""

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The events for what a choice gained, its last if `over`; b"" if there is nothing to show yet."""

    def last(self) -> bytes:
        """The end of a stream."""

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that fails."""

    def whole(self) -> bytes:
        """The body of an answer that is no stream."""


class Api(Protocol[R]):
    """What one API adds."""

    name: str
    id_prefix: str
    dialect: Dialect

    def read(self, body: bytes) -> R:
        """A validated request."""

    def count_prompts(self, request: R) -> int:
        """How many prompts it carries."""

    async def prompts(self, request: R, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
        """Their token ids."""

    def wanted(self, request: R) -> Wanted:
        """Length and log-probabilities."""

    def shape(
        self,
        answer_id: str,
        created: int,
        model: str,
        request: R,
        choices: list[Choice],
        tokenizer: Tokenizer,
    ) -> Answer:
        """Its JSON."""


class Generate(Generic[R]):
    """An ASGI application for one path."""

    def __init__(self, gateway: Gateway, api: Api[R]) -> None:
        self._gateway = gateway
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        headers: Headers = []
        status = "disconnected"
        dialect = self._api.dialect
        try:
            headers.append((b"x-request-id", request_id(scope).encode()))
            status = await self._answer(scope, receive, send, headers)
        except ClientGone:
            pass
        except ApiError as error:
            status = str(error.status)
            await send_error(send, error, headers, dialect)
        except Exception:
            status = "500"
            _log.exception("a request failed")
            await send_error(send, ApiError(500, "internal error", code="internal_error"), headers, dialect)
        finally:
            self._gateway.metrics.answered(self._api.name, status, time.monotonic() - arrived)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        gateway, api = self._gateway, self._api
        request = api.read(await read_body(scope, receive, gateway.config))
        name = gateway.config.served_model_name
        check_model(request.model, gateway.config)
        with gateway.admitted(api.count_prompts(request) * request.n):
            limits = gateway.limits()
            prompts = await api.prompts(request, gateway.tokenizer, limits)
            choices = make_choices(request, prompts, api.wanted(request), limits, gateway.tokenizer)
            gateway.metrics.prompt_tokens.inc(sum(len(p.token_ids) for p in prompts))
            answer_id = api.id_prefix + headers[0][1].decode()
            shape = api.shape(answer_id, int(time.time()), name, request, choices, gateway.tokenizer)
            job = Job(choices, stream=request.stream, priority=request.priority)
            with gateway.flying(job):
                for header, at in ((b"x-ling-prefill-worker", 0), (b"x-ling-decode-worker", 1)):
                    used = dict.fromkeys(flight.workers[at] for flight in job.flights)
                    headers.append((header, ",".join(used).encode()))
                watch = asyncio.create_task(_watch(receive, job))
                try:
                    if api.dialect.id_header != headers[0][0]:
                        headers.append((api.dialect.id_header, headers[0][1]))
                    return await (_stream if request.stream else _whole)(send, job, shape, headers)
                finally:
                    watch.cancel()


async def _watch(receive: Receive, job: Job) -> None:
    """Tells the job when its client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.leave()


async def _whole(send: Send, job: Job, shape: Answer, headers: Headers) -> str:
    while not job.over:
        await job.wait()
    if job.gone:
        raise ClientGone
    if job.error is not None:
        raise job.error
    weight = sum(c.generated if c.keep_logprobs else 0 for c in job.choices)
    weight += sum(len(c.prompt_logprobs) for c in job.choices)
    await send_json(send, 200, shape.whole() if weight < _HEAVY else await asyncio.to_thread(shape.whole), headers)
    return "200"


async def _chunks(job: Job, shape: Answer) -> bytes:
    parts = []
    for choice in job.ready():
        delta, over = choice.take(), choice.served_by is not None
        weight = len(delta.logprobs) + (0 if choice.started else len(choice.prompt_logprobs))
        if weight < _HEAVY:
            parts.append(shape.chunk(choice, delta, over))
        else:
            parts.append(await asyncio.to_thread(shape.chunk, choice, delta, over))
    return b"".join(parts)


async def _stream(send: Send, job: Job, shape: Answer, headers: Headers) -> str:
    # The head waits for the first output: what fails before it still gets an HTTP status.
    begun = False
    while True:
        await job.wait()
        if job.gone:
            raise ClientGone
        error = job.error
        if error is not None and not begun:
            raise error
        end = job.over
        body = b"" if error is not None else await _chunks(job, shape)
        if end:
            body += shape.last() if error is None else shape.failed(error)
        elif not body:
            continue
        if not begun:
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _stream_headers(headers)})
        await send({"type": "http.response.body", "body": body, "more_body": not end})
        if end:
            return "200" if error is None else "error"


def _stream_headers(headers: Headers) -> Headers:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        *headers,
    ]


def check_model(model: str, config: RouterConfig) -> None:
    """404 if another model is asked for than the one served."""
    name = config.served_model_name
    if model not in (name, "auto"):
        message = f"no model {model[:200]!r} is served here, but {name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def request_id(scope: Scope) -> str:
    """The client's own, of the header x-request-id, else a new one; 400 if it is no plain word."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if not _REQUEST_ID.fullmatch(text):
                raise invalid("the header x-request-id must be 1 to 128 printable ASCII characters", "x-request-id")
            return text
    return uuid.uuid4().hex
