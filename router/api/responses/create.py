"""POST /v1/responses: a chat request in another shape, and what is kept of its answer."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from router.api.chat import Chat
from router.api.generate import (
    Answering,
    check_model,
    stream_answer,
    stream_headers,
    watch_client,
    whole_answer,
    worker_headers,
)
from router.api.prompts import make_choices
from router.api.responses.answers import Response
from router.api.responses.background import Background
from router.api.responses.items import new_id
from router.api.responses.resource import resource
from router.api.responses.rows import Conversation, Record
from router.api.responses.schema import ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.api.responses.store import ResponseStore
from router.api.responses.turns import Turn, as_chat, cut_at, cuts
from router.api.responses.words import in_these_words
from router.errors import ApiError, invalid
from router.http.body import parse, read_body
from router.http.caller import caller_of
from router.http.dialect import OPENAI
from router.http.json import encode
from router.http.send import Headers, send_json
from router.relay.choice import Choice, Prompt
from router.relay.gateway import Gateway, Limits
from router.relay.job import Job
from router.relay.prefixes import scope_of
from router.text.tools import ToolParser


class Create(Answering):
    """Makes responses."""

    def __init__(
        self, gateway: Gateway, parser: type[ToolParser], store: ResponseStore, background: Background
    ) -> None:
        super().__init__(gateway, "responses", OPENAI)
        self._chat = Chat(parser)
        self._store = store
        self._background = background

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        body = await read_body(scope, receive, self._gateway.config)
        if self._gateway.config.log_prompts:
            caller_of(scope).asked = body.decode(errors="replace")
        request = parse(body, ResponseRequest)
        check_model(request.model, self._gateway.config)
        try:
            with ExitStack() as holds:
                permit = holds.enter_context(self._gateway.admitted(1))
                caller = caller_of(scope)
                caller.priority = request.priority
                choice, record = await self._begin(request, caller.tenant)
                caller.choices = [choice]
                account = caller.account
                job = Job(
                    [choice],
                    stream=request.stream,
                    priority=request.priority,
                    account=account,
                    prefix_scope=scope_of(caller.tenant, request.cache_salt, self._gateway.config.cache_share_all),
                )
                holds.enter_context(self._gateway.flying(job, permit))
                headers += worker_headers(job)
                if not request.background:
                    return await self._attend(request, job, record, receive, send, headers)
                await self._store.begin(record, streamed=request.stream)
                if account is not None:
                    # The request ends now, its work does not: it goes on counting among what is under way at once.
                    account.running += 1
                    holds.callback(account.leave)
                shape = ResponseSerializer(record.body, choice, self._gateway.tokenizer, None)
                self._background.start(job, shape, holds.pop_all(), streamed=request.stream)
        except ApiError as error:
            raise in_these_words(error) from None
        if request.stream:
            events = self._background.follow(record.tenant, record.body["id"], -1)
            await event_stream(events, headers)(scope, receive, send)
        else:
            await send_json(send, 200, encode(record.body), headers)
        return "200"

    async def _begin(self, request: ResponseRequest, tenant: str) -> tuple[Choice, Record]:
        """What is to be computed, and what will be kept of it."""
        gateway = self._gateway
        earlier = await self._earlier(request, tenant)
        asked = [item.plain() for item in request.input]
        limits = gateway.limits()
        messages = as_chat([*earlier.items, *asked], len(earlier.items), request.instructions)
        chat = request.as_chat(messages)
        wanted = self._chat.wanted(chat)
        await gateway.check(wanted.form)
        prompt = await self._prompt(request, messages, limits)
        (choice,) = make_choices(chat, [prompt], wanted, limits, gateway.tokenizer)
        gateway.metrics.prompt_tokens.add(len(prompt.token_ids))
        body = resource(request, new_id("resp"), int(time.time()), gateway.config.served_model_name)
        return choice, Record(tenant, earlier, asked, body)

    async def _earlier(self, request: ResponseRequest, tenant: str) -> Conversation:
        response_id = request.previous_response_id
        if response_id is None:
            return Conversation()
        found = await self._store.conversation(tenant, response_id)
        param = "previous_response_id"
        if found is None:
            message = f"'{param}': no response {response_id[:80]!r} is kept here"
            raise invalid(message, param, "previous_response_not_found")
        kept, earlier = found
        status = kept.body["status"]
        if status not in ("completed", "incomplete"):
            message = f"'{param}': the response {response_id[:80]!r} is {status}; only one that ended well can go on"
            raise invalid(message, param, "previous_response_not_completed")
        return earlier

    async def _prompt(self, request: ResponseRequest, messages: list[Turn], limits: Limits) -> Prompt:
        """Of the whole conversation; of its longest end that fits where the request allows to cut it."""
        best = await self._render(request, messages, limits)
        if request.truncation == "disabled" or _fits(request, best, limits):
            return best
        places = cuts(messages)
        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            tried = await self._render(request, cut_at(messages, places[middle]), limits)
            if _fits(request, tried, limits):
                best, high = tried, middle
            else:
                low = middle + 1
        return best

    async def _render(self, request: ResponseRequest, messages: list[Turn], limits: Limits) -> Prompt:
        (prompt,) = await self._chat.prompts(request.as_chat(messages), self._gateway.tokenizer, limits)
        return prompt

    async def _attend(
        self, request: ResponseRequest, job: Job, record: Record, receive: Receive, send: Send, headers: Headers
    ) -> str:
        """Answer the client as long as it is there."""

        async def keep(body: Response) -> None:
            await self._store.put(replace(record, body=body))

        sink = keep if request.store else None
        shape = ResponseSerializer(record.body, job.choices[0], self._gateway.tokenizer, sink)
        watch = asyncio.create_task(watch_client(receive, job))
        try:
            return await (stream_answer if request.stream else whole_answer)(send, job, shape, headers)
        finally:
            watch.cancel()


def event_stream(events: AsyncIterator[bytes], headers: Headers) -> StreamingResponse:
    """Events as an answer."""
    answer = StreamingResponse(events)
    answer.raw_headers = stream_headers(headers)
    return answer


def _fits(request: ResponseRequest, prompt: Prompt, limits: Limits) -> bool:
    return len(prompt.token_ids) + (request.max_output_tokens or 1) <= limits.max_model_len
