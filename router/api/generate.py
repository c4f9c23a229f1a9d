"""The generating endpoints, from HTTP request to answer, as plain ASGI: a chunk costs one `send`."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from router.api.prompts import Wanted, make_choices
from router.api.schema import GenerationRequest
from router.config import RouterConfig
from router.errors import ApiError
from router.http.body import ClientGone, read_body
from router.http.caller import caller_of
from router.http.dialect import Dialect
from router.http.send import Headers, send_error, send_json
from router.relay.choice import Choice, Delta, Prompt
from router.relay.gateway import Gateway, Limits
from router.relay.job import Job
from router.relay.prefixes import scope_of
from router.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
# Writing out so many log-probabilities takes milliseconds: in a thread, lest other streams wait for it.
HEAVY = 256
R = TypeVar("R", bound=GenerationRequest)


class Answer(Protocol):
    """One request's answer as JSON."""

    def chunk(self, choice: Choice, delta: Delta, over: bool) -> bytes:
        """The events for what a choice gained, its last if `over`; b"" if there is nothing to show yet."""

    async def settle(self, error: ApiError | None) -> None:
        """What is to be done before the end is told. error: what an already begun stream failed with."""

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


async def prepare(gateway: Gateway, api: Api[R], request: R, request_id: str) -> tuple[list[Choice], Answer]:
    """What is to be computed for a request, and its answer to be."""
    wanted = api.wanted(request)
    await gateway.check(wanted.form)
    limits = gateway.limits()
    prompts = await api.prompts(request, gateway.tokenizer, limits)
    choices = make_choices(request, prompts, wanted, limits, gateway.tokenizer)
    gateway.metrics.prompt_tokens.add(sum(len(p.token_ids) for p in prompts))
    name, created = gateway.config.served_model_name, int(time.time())
    return choices, api.shape(api.id_prefix + request_id, created, name, request, choices, gateway.tokenizer)


class Answering(ABC):
    """An ASGI application for one path: whatever goes wrong is said in its dialect. name: in the metrics."""

    def __init__(self, gateway: Gateway, name: str, dialect: Dialect) -> None:
        self._gateway = gateway
        self._name = name
        self._dialect = dialect

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        """Answer with `headers` among others; what became of it, for the metrics."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        headers: Headers = []
        status = "disconnected"
        dialect = self._dialect
        try:
            headers.append((b"x-request-id", caller_of(scope).request_id.encode()))
            status = await self._answer(scope, receive, send, headers)
        except ClientGone:
            pass
        except ApiError as error:
            status = str(error.status)
            await send_error(send, error, headers, dialect)
        except Exception:
            status = "500"
            _log.exception("request %s failed", caller_of(scope).request_id)
            await send_error(send, ApiError(500, "internal error", code="internal_error"), headers, dialect)
        finally:
            seconds = time.monotonic() - arrived
            self._gateway.metrics.answered(self._name, status, seconds, caller_of(scope).priority)


class Generate(Answering, Generic[R]):
    """Any of the APIs that do nothing but generate."""

    def __init__(self, gateway: Gateway, api: Api[R]) -> None:
        super().__init__(gateway, api.name, api.dialect)
        self._api = api

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        gateway, api = self._gateway, self._api
        body = await read_body(scope, receive, gateway.config)
        if gateway.config.log_prompts:
            caller_of(scope).asked = body.decode(errors="replace")
        request = api.read(body)
        check_model(request.model, gateway.config)
        with gateway.admitted(api.count_prompts(request) * request.n) as permit:
            choices, shape = await prepare(gateway, api, request, headers[0][1].decode())
            caller = caller_of(scope)
            caller.choices = choices
            caller.priority = request.priority
            account = caller.account
            prefix_scope = scope_of(caller.tenant, request.cache_salt, gateway.config.cache_share_all)
            job = Job(
                choices,
                stream=request.stream,
                priority=request.priority,
                account=account,
                prefix_scope=prefix_scope,
            )
            with gateway.flying(job, permit):
                headers += worker_headers(job)
                watch = asyncio.create_task(watch_client(receive, job))
                try:
                    if api.dialect.id_header != headers[0][0]:
                        headers.append((api.dialect.id_header, headers[0][1]))
                    return await (stream_answer if request.stream else whole_answer)(send, job, shape, headers)
                finally:
                    watch.cancel()


def worker_headers(job: Job) -> Headers:
    """Which workers compute it."""
    out = []
    for header, at in ((b"x-ling-prefill-worker", 0), (b"x-ling-decode-worker", 1)):
        used = dict.fromkeys(stream.workers[at] for stream in job.streams)
        out.append((header, ",".join(used).encode()))
    return out


async def watch_client(receive: Receive, job: Job) -> None:
    """Tells the job when its client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.leave()


async def whole_answer(send: Send, job: Job, shape: Answer, headers: Headers) -> str:
    """Answer once all of it is there; the HTTP status. ApiError if it failed."""
    while not job.over:
        await job.wait()
    if job.gone:
        raise ClientGone
    if job.error is not None:
        raise job.error
    await shape.settle(None)
    weight = sum(c.generated if c.keep_logprobs else 0 for c in job.choices)
    weight += sum(len(c.prompt_logprobs) for c in job.choices)
    await send_json(send, 200, shape.whole() if weight < HEAVY else await asyncio.to_thread(shape.whole), headers)
    return "200"


async def chunks(job: Job, shape: Answer) -> bytes:
    """The events for what the job gained since the last call."""
    parts = []
    for choice in job.ready():
        delta, over = choice.take(), choice.served_by is not None
        weight = len(delta.logprobs) + (0 if choice.started else len(choice.prompt_logprobs))
        if weight < HEAVY:
            parts.append(shape.chunk(choice, delta, over))
        else:
            parts.append(await asyncio.to_thread(shape.chunk, choice, delta, over))
    return b"".join(parts)


async def stream_answer(send: Send, job: Job, shape: Answer, headers: Headers) -> str:
    """Answer as it comes; the HTTP status, or "error" if it failed within. ApiError if it failed before."""
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
        body = b"" if error is not None else await chunks(job, shape)
        if end:
            await shape.settle(error)
            body += shape.last() if error is None else shape.failed(error)
        elif not body:
            continue
        if not begun:
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": stream_headers(headers)})
        await send({"type": "http.response.body", "body": body, "more_body": not end})
        if end:
            return "200" if error is None else "error"


def stream_headers(headers: Headers) -> Headers:
    """The head of a stream."""
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
