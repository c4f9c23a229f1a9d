"""Answers one line of a batch as its endpoint would answer a client."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from router.api.answering import check_model
from router.api.generate import Api, begin
from router.api.prompts import make_choices
from router.errors import ApiError, invalid
from router.priority import BATCH
from router.relay.choice import Choice
from router.relay.gateway import Gateway
from router.relay.job import Job
from router.relay.prefixes import scope_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer's HTTP status, JSON and tokens. error: why the line failed; None if it succeeded."""

    status: int
    body: bytes
    error: ApiError | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


async def answer(
    gateway: Gateway, api: Api[Any], body: bytes, tenant: str, request_id: str, sent: Callable[[], None]
) -> Answered:
    """Answer a line; an error is returned as an answer too. `sent` is called once the request is at the workers.

    If this is cancelled, nothing of the request is left at the workers.
    """
    try:
        return await _answer(gateway, api, body, tenant, request_id, sent)
    except ApiError as error:
        return Answered(error.status, api.dialect.body(error, request_id), error)
    except Exception:
        _log.exception("batch request %s failed", request_id)
        internal = ApiError(500, "internal error", code="internal_error")
        return Answered(500, api.dialect.body(internal, request_id), internal)


async def _answer(
    gateway: Gateway, api: Api[Any], body: bytes, tenant: str, request_id: str, sent: Callable[[], None]
) -> Answered:
    asked = await gateway.apart(len(body), api.read, body)
    if asked.stream:
        raise invalid("'stream' true is not supported in a batch: each answer is one line", "stream")
    check_model(asked.model, gateway.config)
    request = await gateway.apart(len(body), api.lower, asked)
    if request.session is not None:
        raise invalid("'session_id' is not supported in a batch: its lines have no order", "session_id")
    choices = await make_choices(gateway, request, tenant)
    shape = begin(gateway, api, asked, request, choices)
    job = Job(
        choices,
        stream=False,
        priority=BATCH + request.priority,
        tenant=tenant,
        live=False,
        prefix_scope=scope_of(tenant, request.cache_salt, gateway.config.cache_share_all),
    )
    with gateway.flying(job):
        sent()
        while not job.over:
            await job.wait()
    if job.error is not None:
        raise job.error
    await shape.settle(None)
    return Answered(200, await asyncio.to_thread(shape.whole), None, *_tokens(choices))


def _tokens(choices: Iterable[Choice]) -> tuple[int, int, int]:
    """Prompt, cached and generated tokens. Choices of one prompt share it, so it counts once."""
    prompts = {id(c.prompt): c for c in choices}.values()
    cached = sum(c.cached_tokens for c in prompts)
    return sum(len(c.prompt.token_ids) for c in prompts), cached, sum(c.generated for c in choices)
