"""POST /v1/responses: computes a response and stores it."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace

from pydantic_core import from_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from router.api.answering import Answering, check_model
from router.api.answers.items import KeptItem
from router.api.generate import (
    job_of,
    stream_answer,
    stream_headers,
    watch_client,
    whole_answer,
    worker_headers,
)
from router.api.prompts import make_choices
from router.api.request import Request
from router.api.responses.answers import Response
from router.api.responses.background import Background
from router.api.responses.ids import new_id
from router.api.responses.items import InputItem, ItemReference
from router.api.responses.resource import STATUSES, resource
from router.api.responses.rows import Conversation, Record, Run
from router.api.responses.schema import ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.api.responses.store import ResponseStore
from router.api.responses.takeover import run_key, seeded
from router.api.responses.tools import warning
from router.api.session_turn import begin_turn, session_of
from router.errors import ApiError, fault, invalid
from router.http.body import parse, read_body
from router.http.caller import caller_of
from router.http.deadline import deadline_of
from router.http.dialect import OPENAI
from router.http.json import encode
from router.http.keyed import keyed_of
from router.http.send import Headers, send_json
from router.relay.choice import Choice
from router.relay.gateway import Gateway
from router.relay.job import Job
from router.relay.keyed import Keyed, reused
from router.relay.sessions import Sessions


class Create(Answering):
    """The endpoint that makes responses."""

    def __init__(self, gateway: Gateway, store: ResponseStore, background: Background, sessions: Sessions) -> None:
        super().__init__(gateway, "responses", OPENAI)
        self._sessions = sessions
        self._store = store
        self._background = background

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        body = await read_body(scope, receive, self._gateway.config)
        if self._gateway.config.log_prompts:
            caller_of(scope).asked = body.decode(errors="replace")
        request = await self._gateway.apart(len(body), parse, body, ResponseRequest)
        check_model(request.model, self._gateway.config)
        keyed = keyed_of(scope, body, caller_of(scope).tenant)
        # It is stored before it ends, so that any router can go on with it, and show it to who asks with its key again.
        apart = request.background or (keyed is not None and request.store)
        response_id = new_id("resp")
        if keyed is not None:
            if keyed.had:
                message = "the stream of a response goes on with GET /v1/responses/ID?stream=true&starting_after=N"
                raise invalid(f"Last-Event-ID: {message}", "last-event-id")
            keyed = replace(keyed, tells_ids=False)
            response_id = f"resp_{keyed.name.hex()}"
            if apart and (before := await self._again(caller_of(scope).tenant, response_id, keyed)) is not None:
                return await self._show(request, before, scope, receive, send, headers)
        with ExitStack() as holds:
            permit = holds.enter_context(self._gateway.admitted(1))
            caller = caller_of(scope)
            caller.priority = request.priority
            run = run_key(response_id) if apart else keyed
            lowered, choice, record = await self._begin(request, caller.tenant, response_id, run)
            caller.choices = [choice]
            account = caller.account
            job = job_of(lowered, [choice], caller, self._gateway.config, deadline_of(scope), run)
            if not apart:
                await self._gateway.rejoin(job)
            session = session_of(scope, lowered)
            turn = await begin_turn(self._sessions, session, caller, job, takes_over=not apart)
            holds.enter_context(self._sessions.held(turn))
            holds.enter_context(self._gateway.flying(job, permit))
            headers += worker_headers(job, self._gateway.config)
            if (told := warning(request.tools)) is not None:
                headers.append((b"warning", told.encode()))
            if not apart:
                return await self._attend(request, job, record, receive, send, headers)
            digest = hashlib.blake2b(body, digest_size=16).digest()
            if request.session_id is None and session is not None:
                body = encode({**from_json(body), "session_id": session})  # for a router without the header
            begun = await self._store.begin(record, Run(body, digest), streamed=request.stream)
            if begun:
                if account is not None:
                    # The request ends now, but its work continues and still counts as a concurrent one of its key.
                    account.running += 1
                    holds.callback(account.leave)
                shape = ResponseSerializer(record.body, choice, self._gateway.tokenizer, None)
                self._background.start(job, shape, holds.pop_all(), streamed=request.stream)
        shown: Response | None = record.body
        if not begun and keyed is not None:  # its client sent it twice at once: the first one's answer is for both
            shown = await self._again(caller.tenant, response_id, keyed)
        if shown is None:
            raise reused()
        return await self._show(request, shown, scope, receive, send, headers)

    async def _again(self, tenant: str, response_id: str, keyed: Keyed) -> Response | None:
        """The response that was asked for with the same key before, if one was; 422 if with another body."""
        kept = await self._store.get(tenant, response_id)
        if kept is not None and await self._store.digest(response_id) != keyed.body:
            raise reused()
        return kept.body if kept is not None else None

    async def _show(
        self, request: ResponseRequest, body: Response, scope: Scope, receive: Receive, send: Send, headers: Headers
    ) -> str:
        """Answer with a response that runs, or ran, without its client.

        A failed one is an error if the client waits for its end.
        """
        tenant = caller_of(scope).tenant
        if request.stream:
            await event_stream(self._background.follow(tenant, body["id"], -1), headers)(scope, receive, send)
            return "200"
        if not request.background:
            body = await self._background.ended(tenant, body)
            if (failed := body["error"]) is not None:
                raise ApiError(STATUSES.get(failed["code"], 500), failed["message"], code=failed["code"])
        await send_json(send, 200, encode(body), headers)
        return "200"

    async def _begin(
        self, request: ResponseRequest, tenant: str, response_id: str, run: Keyed | None
    ) -> tuple[Request, Choice, Record]:
        """Prepare a response: what is to be computed and what will be stored. run: its key, if it runs by itself."""
        earlier = await self._earlier(request, tenant)
        asked = [await self._plain(item, i, tenant) for i, item in enumerate(request.input)]
        lowered = request.lower(earlier.items, asked)
        if run is not None:
            lowered = seeded(lowered, run)
        (choice,) = await make_choices(self._gateway, lowered, tenant)
        body = resource(request, response_id, int(time.time()), self._gateway.config.served_model_name)
        return lowered, choice, Record(tenant, earlier, asked, body)

    async def _plain(self, item: InputItem, place: int, tenant: str) -> KeptItem:
        """An input item in its stored form; for a reference, the item that it names."""
        if not isinstance(item, ItemReference):
            return item.plain()
        found = await self._store.item(tenant, item.id)
        if found is None:
            raise fault(("input", place, "id"), f"no item {item.id[:80]!r} is kept here", "item_not_found")
        return found

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
            message = f"'{param}': the response {response_id[:80]!r} is {status} and can't be continued"
            raise invalid(message, param, "previous_response_not_completed")
        return earlier

    async def _attend(
        self, request: ResponseRequest, job: Job, record: Record, receive: Receive, send: Send, headers: Headers
    ) -> str:
        """Answer the client while it stays connected."""

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
    """Make a streamed answer of events."""
    answer = StreamingResponse(events)
    answer.raw_headers = stream_headers(headers)
    return answer
